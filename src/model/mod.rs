//! The Candle decoder family: one forward pass with taps, its parameters, and its files.

mod block;
mod by_block;
pub mod decoder;
pub mod features;
pub mod felix;
pub mod file_error;
pub mod gguf_file;
pub mod gguf_tokenizer;
pub mod hugging_face;
pub mod hugging_face_config;
mod hugging_face_text;
pub mod init;
pub mod layout;
pub mod ops;
pub mod parameters;
pub mod safetensors_file;
mod source;
pub mod spec;
mod superseded;
pub mod synthetic_model;
pub mod taps;
#[cfg(test)]
mod tests;

pub use by_block::logits_by_block;
pub use decoder::Decoder;
pub use features::{Family, Features};
pub use file_error::FileError;
pub use hugging_face::{Model, TextSide};
pub use layout::{BatchLayout, Document};
pub use parameters::Parameters;
pub use source::ModelSource;
pub use spec::{BlockSpec, DecoderConfig, ParameterSpec, Role, RopeScaling, Uniform};
pub use taps::{Context, NoTaps, Pass, Point, Projection, Recompute, Taps};
