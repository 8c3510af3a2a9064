//! What needs `unsafe` and no engine: ggml's reading of quantised blocks, the C library's local time,
//! and code for more features than the program is compiled for.
#![allow(unsafe_code)]

mod dequantise;
mod local_time;
mod vectorised;

pub use dequantise::Dequantise;
#[cfg(test)]
pub use dequantise::quantise_rows;
pub use local_time::local_time;
pub use vectorised::vectorised;
