//! Code that needs `unsafe` but no engine: the C library's local time, functions compiled for more
//! CPU features than the program, and products of matrices.
#![allow(unsafe_code)]

mod local_time;
mod product;
mod vectorised;

pub use local_time::local_time;
pub use product::{View, product};
pub use vectorised::vectorised;
