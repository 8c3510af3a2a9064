//! What llama.cpp offers beyond the safe binding.
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
pub use buffers::{reading_weights, take_part};
pub use context::{Batch, Context, ContextError, ContextSettings, DecodeError, gives_up};
pub use cpu_features::{compiled_features, llama_features, missing_features};
pub use custom_ops::{FelixError, Use as FelixUse};
pub use process_exit::end;
pub use quantise::{QuantType, QuantiseError, quantise};
