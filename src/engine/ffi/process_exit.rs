//! The end of the process.

use std::io::Write;

/// Ends the process with this status at once. A normal exit would first destroy llama.cpp's static
/// variables while a thread may still load or decode, which causes a segmentation fault.
pub fn end(status: u8) -> ! {
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process; none of our code runs afterwards.
    unsafe { libc::_exit(status.into()) }
}
