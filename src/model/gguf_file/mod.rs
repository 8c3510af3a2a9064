//! Converts models to GGUF files that llama.cpp serves, and back.

mod config_keys;
mod foreign_keys;
mod import;
pub mod kinship;
mod limits;
pub mod names;
mod scaling;
pub(crate) mod values;

use std::path::Path;

use safetensors::Dtype;

use super::file_error::FileError;
use super::{DecoderConfig, ModelSource, ParameterSpec, gguf_tokenizer, safetensors_file};
use crate::digest::Digest;
use crate::gguf::{GgmlType, ORIGIN_KEY, TensorHasher, Writer};
pub(super) use config_keys::write_config;
pub use import::{Imported, import, load_config};
use names::{gguf_dims, gguf_name};
use scaling::ROPE_FREQS;

/// How the matrices of an export are stored. Vectors are always f32: llama.cpp supports nothing
/// else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As trained.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Precision {
    fn kind(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Bf16 => GgmlType::BF16,
        }
    }

    /// llama.cpp's `LLAMA_FTYPE_*`.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 32,
        }
    }
}

/// Writes a model as a GGUF file, atomically. `folder` is the folder of its Hugging Face files,
/// for errors.
///
/// # Errors
/// A decoder or tokenizer that llama.cpp would treat differently; parameters that don't fit; I/O
/// errors.
pub fn export(
    model: &impl ModelSource,
    name: &str,
    folder: &Path,
    target: &Path,
    precision: Precision,
) -> Result<(), FileError> {
    let config = model.config();
    limits::check(config, &folder.join("config.json"))?;
    let mut writer = Writer::new();
    write_config(config, name, precision.file_type(), &mut writer);
    gguf_tokenizer::write(model.text(), config.vocab_size, &folder.join("tokenizer.json"), &mut writer)?;
    writer.set(ORIGIN_KEY, content_hash(model)?.to_string());
    let tensors = tensors(config);
    for Tensor { name, dims, matrix, .. } in &tensors {
        writer.tensor(name, dims, if *matrix { precision.kind() } else { GgmlType::F32 });
    }
    let mut tensors = tensors.into_iter();
    writer.write(target, |tensor| {
        let source = tensors.next().expect("each tensor was announced with its source").source;
        Ok(encode(&source.values(model)?, tensor.kind))
    })
}

/// The hash of a model's tensors in its F32 file, which spokes that are trained on it refer to.
///
/// # Errors
/// Parameters that don't fit.
pub fn content_hash(model: &impl ModelSource) -> Result<Digest, FileError> {
    let mut tensors = tensors(model.config());
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = TensorHasher::default();
    for Tensor { name, dims, source, .. } in tensors {
        hasher.add(&name, &dims, GgmlType::F32, &encode(&source.values(model)?, GgmlType::F32));
    }
    Ok(hasher.finish())
}

/// A tensor to be written, in ggml's terms.
struct Tensor {
    name: String,
    dims: Vec<u64>,
    /// Whether it is stored like a matrix (see [`stored_as`]).
    matrix: bool,
    source: Source,
}

/// The tensors of a decoder in file order.
fn tensors(config: &DecoderConfig) -> Vec<Tensor> {
    let attention = config.attention().next();
    let scaled = attention.and_then(|attention| Some((attention, attention.rope_scaling.as_ref()?)));
    let scaling = scaled.map(|(attention, scaling)| Tensor {
        name: ROPE_FREQS.to_owned(),
        dims: vec![attention.head_dim as u64 / 2],
        matrix: false,
        source: Source::Values(scaling::factors(attention, scaling)),
    });
    let parameter = |parameter: ParameterSpec| {
        let shape = parameter.shape();
        Tensor {
            name: gguf_name(config.family, parameter.role).expect(NAMED),
            dims: gguf_dims(&shape),
            matrix: shape.len() == 2,
            source: Source::Parameter(parameter),
        }
    };
    scaling.into_iter().chain(config.parameters().into_iter().map(parameter)).collect()
}

const NAMED: &str = "every parameter of a decoder has a name in llama.cpp";

/// The type of a parameter of this shape if matrices are stored as `matrices`: llama.cpp needs
/// vectors and the kernels of short convolutions in f32.
pub(super) fn stored_as(shape: &[usize], matrices: GgmlType) -> GgmlType {
    if shape.len() == 2 { matrices } else { GgmlType::F32 }
}

/// The source of a tensor's values.
enum Source {
    Parameter(ParameterSpec),
    Values(Vec<f32>),
}

impl Source {
    /// The values in llama.cpp's order.
    fn values(self, model: &impl ModelSource) -> Result<Vec<f32>, FileError> {
        match self {
            Self::Values(values) => Ok(values),
            Self::Parameter(parameter) => {
                Ok(values::to_gguf(model.config(), parameter.role, model.values(&parameter)?))
            }
        }
    }
}

/// Encodes values as F16, BF16 or else F32.
pub(crate) fn encode(values: &[f32], kind: GgmlType) -> Vec<u8> {
    let dtype = match kind {
        GgmlType::F16 => Dtype::F16,
        GgmlType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    safetensors_file::encode(values, dtype)
}
