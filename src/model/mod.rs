//! The Candle decoder family: one forward pass with taps, its parameters, and its files.

pub mod config;
pub mod decoder;
pub mod init;
pub mod layout;
pub mod ops;
pub mod parameters;
pub mod taps;
pub mod tokenizer;

pub use config::{DecoderConfig, Family, RopeScaling};
pub use decoder::Decoder;
pub use layout::{BatchLayout, Document};
pub use parameters::Parameters;
pub use taps::{NoTaps, Point, Projection, Taps};
