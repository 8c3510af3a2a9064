//! The only unsafe code: what llama.cpp offers and the safe binding lacks.
#![allow(unsafe_code)]

mod adapter;
mod buffers;
pub mod child;
mod context;
mod dequantise;
mod end;
mod local_time;
mod processor;
mod quantise;
mod rewrite;

pub use adapter::{Adapter, AdapterError};
pub use buffers::take_part;
pub use context::{Batch, Context, ContextError, ContextSettings, DecodeError, gives_up};
pub use dequantise::Dequantise;
#[cfg(test)]
pub use dequantise::quantise_rows;
pub use end::end;
pub use local_time::local_time;
#[cfg(target_arch = "x86_64")]
pub use processor::prefetch;
pub use processor::{
    attend, compiled_features, llama_features, missing_features, multiply, pack, product, vectorised,
};
pub use quantise::{QuantType, QuantiseError, quantise};
pub use rewrite::{FelixError, Use as FelixUse};
