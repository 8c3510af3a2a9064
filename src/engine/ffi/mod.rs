//! The only unsafe code: what llama.cpp offers and the safe binding lacks.
#![allow(unsafe_code)]

mod adapter;
mod context;
mod quantise;
mod rewrite;
mod vector;

pub use adapter::{Adapter, AdapterError};
pub use context::{Batch, Context, ContextError, ContextSettings, DecodeError};
pub use quantise::{QuantType, QuantiseError, quantise};
pub use vector::{Panel, has_product, product};
