//! Measures the peak memory of a computation on its device.

use candle_core::Device;

/// Runs `work` and returns the peak number of bytes in use on its device: on a GPU for the whole
/// device, including other programs, by its driver; else for this process.
pub fn watched<R>(device: &Device, work: impl FnOnce() -> R) -> (R, Option<u64>) {
    if device.is_cpu() {
        let result = work();
        return (result, of_process());
    }
    on_gpu(device, work)
}

/// Largest resident memory of this process so far.
fn of_process() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?;
    Some(kibibytes.parse::<u64>().ok()? * 1024)
}

#[cfg(feature = "cuda")]
fn on_gpu<R>(device: &Device, work: impl FnOnce() -> R) -> (R, Option<u64>) {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    /// Memory is allocated and freed many times per step. At this interval, peaks show up within a
    /// few steps.
    const LOOK: Duration = Duration::from_millis(2);
    let Ok(gpu) = device.as_cuda_device() else { return (work(), None) };
    let context = gpu.cuda_stream().context().clone();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = None;
            while !done.load(Ordering::Relaxed) {
                let used = context.mem_get_info().ok().map(|(free, total)| (total - free) as u64);
                most = most.max(used);
                std::thread::sleep(LOOK);
            }
            most
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, watching.join().unwrap_or(None))
    })
}

#[cfg(not(feature = "cuda"))]
fn on_gpu<R>(_: &Device, work: impl FnOnce() -> R) -> (R, Option<u64>) {
    (work(), None)
}
