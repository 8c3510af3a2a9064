//! The end of the process.

use std::io::Write;

/// Ends the process with this status, now. C++ would first destroy what llama.cpp keeps in static variables, under the hands
/// of a thread that still loads or decodes, which ends in a segmentation fault.
pub fn end(status: u8) -> ! {
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process; nothing of ours runs afterwards.
    unsafe { libc::_exit(status.into()) }
}
