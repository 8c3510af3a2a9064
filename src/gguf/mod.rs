//! GGUF files: a reader that trusts no input, a writer, and the checks that a file must pass before
//! it is given to llama.cpp.
//!
//! The format is ggml's `docs/gguf.md`, versions 2 and 3, little endian. Every count and length is
//! compared with the rest of the file before memory is allocated, and every rule that a file can
//! break has its own [`Rule`] variant. `docs/formats.md` lists them.

mod check;
mod content;
mod dequantise;
mod error;
mod per_block;
mod reader;
mod tensor;
mod types;
mod value;
mod writer;

pub use check::{check_contiguous, check_model, check_readable};
pub use content::TensorHasher;
pub use dequantise::Dequantise;
#[cfg(test)]
pub use dequantise::quantise_rows;
pub use error::{GgufError, Rule};
pub use per_block::PerBlock;
pub use reader::{Gguf, TensorInfo};
pub use types::GgmlType;
pub use value::{Array, FromValue, Value, ValueType};
pub use writer::Writer;

/// Key under which an export records the hash of the F32 tensors that it was made from. Quantised
/// copies keep it.
pub const ORIGIN_KEY: &str = "bespoke.post.sha256";
/// Alignment of tensor data if `general.alignment` is missing.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Maximum length of a key in bytes (the format's own limit).
pub const MAX_KEY_BYTES: u64 = 65_535;
/// Maximum length of a tensor name in bytes (ggml's `GGML_MAX_NAME` minus the final zero).
pub const MAX_TENSOR_NAME_BYTES: u64 = 63;
/// Maximum number of dimensions of a tensor (ggml's `GGML_MAX_DIMS`).
pub const MAX_DIMENSIONS: u32 = 4;
