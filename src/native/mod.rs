//! Code that needs `unsafe` but no engine: the C library's local time, and functions compiled for
//! more CPU features than the program.
#![allow(unsafe_code)]

mod local_time;
mod vectorised;

pub use local_time::local_time;
pub use vectorised::vectorised;
