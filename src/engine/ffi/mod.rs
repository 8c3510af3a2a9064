//! The only unsafe code: what llama.cpp offers and the safe binding lacks.
#![allow(unsafe_code)]

mod adapter;
mod buffers;
pub mod child;
mod context;
mod cpu_features;
mod custom_ops;
mod process_exit;
mod quantise;

pub use adapter::{Adapter, AdapterError};
pub use buffers::take_part;
pub use context::{Batch, Context, ContextError, ContextSettings, DecodeError, gives_up};
#[cfg(target_arch = "x86_64")]
pub use cpu_features::prefetch;
pub use cpu_features::{
    attend, compiled_features, llama_features, missing_features, multiply, pack, product,
};
pub use custom_ops::{FelixError, Use as FelixUse};
pub use process_exit::end;
pub use quantise::{QuantType, QuantiseError, quantise};
