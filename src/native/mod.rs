//! What needs `unsafe` and no engine: the C library's local time, and code for
//! more features than the program is compiled for.
#![allow(unsafe_code)]

mod local_time;
mod vectorised;

pub use local_time::local_time;
pub use vectorised::vectorised;
