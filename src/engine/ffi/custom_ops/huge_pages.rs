//! Huge pages for weights.

use std::ffi::CStr;

use llama_cpp_sys_2 as sys;

/// Size of a huge page, and to what it is aligned.
const HUGE: usize = 2 << 20;

/// Has the system put a buffer into huge pages, where it can: each token reads all weights in
/// order, and looking up small pages takes an eighth of that time. A buffer in a file's pages stays
/// as it is: they are not this process's alone, and putting them together makes everybody wait who
/// reads the file.
pub fn make_huge(buffer: sys::ggml_backend_buffer_t) {
    if is_in_a_file(buffer) {
        return;
    }
    // SAFETY: the buffer lives; neither call changes it.
    let (base, size) =
        unsafe { (sys::ggml_backend_buffer_get_base(buffer), sys::ggml_backend_buffer_get_size(buffer)) };
    let skipped = base.addr().next_multiple_of(HUGE) - base.addr();
    let size = size.saturating_sub(skipped) / HUGE * HUGE;
    if size == 0 {
        return;
    }
    #[cfg(target_os = "linux")]
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_COLLAPSE] {
        // SAFETY: whole pages within the buffer; neither advice changes what is in them.
        if unsafe { libc::madvise(base.byte_add(skipped), size, advice) } != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, bytes = size, "weights stay in small pages");
            return;
        }
    }
    tracing::debug!(bytes = size, "weights are in huge pages");
}

/// Whether llama.cpp has mapped the weights from their file. It says so by the buffer's name.
fn is_in_a_file(buffer: sys::ggml_backend_buffer_t) -> bool {
    // SAFETY: the buffer lives; the name is a constant of llama.cpp's.
    let name = unsafe { CStr::from_ptr(sys::ggml_backend_buffer_name(buffer)) };
    name.to_bytes().ends_with(b"_Mapped")
}
