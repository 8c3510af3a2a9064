//! The Candle decoder family: one forward pass with taps, its parameters, and its files.

pub mod config;
pub mod parameters;
pub mod tokenizer;

pub use config::{DecoderConfig, Family, RopeScaling};
pub use parameters::Parameters;
