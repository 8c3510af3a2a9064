//! Resets what a child process would inherit from the daemon.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::descriptors;

/// Makes a child start as from a terminal: with no signal ignored or blocked, and with the limit of
/// file descriptors that this process was started with. Otherwise, a process that ignores SIGINT
/// (`nohup make test &`) would pass that on to every child, and a child that closes all descriptors
/// would count up to a limit that was raised for connections.
pub fn start_clean(command: &mut Command) {
    let limit = descriptors::inherited();
    let reset = move || {
        for signal in 1..=libc::SIGRTMAX() {
            // SAFETY: a system call. It fails for the few signals that can't be set, which can't be
            // ignored either.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // SAFETY: a signal set is plain memory, and sigemptyset makes it valid.
        unsafe {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        }
        if let Some((soft, hard)) = limit {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            // SAFETY: the limit is only read during the call. It does no harm if the call fails.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec, the closure makes only system calls: it allocates nothing and
    // takes no lock.
    unsafe { command.pre_exec(reset) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_of_a_process_that_ignores_signals_ignores_none() {
        const INNER: &str = "BESPOKE_TEST_INNER";
        if std::env::var_os(INNER).is_some() {
            // The signals that the child blocks and ignores, as the kernel reports them.
            let mut command = Command::new("grep");
            command.args(["-E", "^Sig(Blk|Ign):", "/proc/self/status"]);
            start_clean(&mut command);
            let told = String::from_utf8(command.output().unwrap().stdout).unwrap();
            assert_eq!(told.lines().count(), 2, "{told}");
            // Signals 32 and 33 belong to the C library, which ignores the first while it starts a
            // process.
            let free = |line: &str| {
                let mask = line.rsplit('\t').next().and_then(|mask| u64::from_str_radix(mask, 16).ok());
                mask.map(|mask| mask & !(0b11 << 31)) == Some(0)
            };
            assert!(told.lines().all(free), "{told}");
            return;
        }
        // Run this test again in a process that ignores signals, as `nohup make test &` does.
        let name = "engine::ffi::child::tests::a_child_of_a_process_that_ignores_signals_ignores_none";
        let again = Command::new("sh")
            .args(["-c", "trap '' INT QUIT HUP USR1 TERM; exec \"$0\" --exact \"$1\" --nocapture"])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(INNER, "1")
            .output()
            .unwrap();
        let said = [again.stdout.as_slice(), &again.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(again.status.success() && said.contains("1 passed"), "{said}");
    }
}
