//! A model as a GGUF file that llama.cpp serves, and back.

mod config_keys;
mod limits;
pub mod names;
mod scaling;
mod values;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Var};
use half::{bf16, f16};

use super::file_error::FileError;
use super::hugging_face::Model;
use super::safetensors_file::f32_values;
use super::{Parameters, gguf_tokenizer};
use crate::gguf::{GgmlType, Gguf, TensorInfo, Writer, check_model};
use config_keys::read_config;
pub(super) use config_keys::write_config;
use names::{gguf_dims, gguf_name};
use scaling::ROPE_FREQS;

/// How the matrices of an export are stored. Vectors are always f32: llama.cpp multiplies them in nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As trained.
    F32,
    /// Half.
    F16,
    /// Brain float.
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

/// Writes a model as a GGUF file, atomically. `folder` is where its Hugging Face files are, for errors.
///
/// # Errors
/// A decoder or a tokenizer that llama.cpp would treat otherwise; parameters that do not fit; the disk.
pub fn export(
    model: &Model,
    name: &str,
    folder: &Path,
    target: &Path,
    precision: Precision,
) -> Result<(), FileError> {
    let config = &model.config;
    limits::check(config, &folder.join("config.json"))?;
    let mut writer = Writer::new();
    write_config(config, name, precision.file_type(), &mut writer);
    gguf_tokenizer::write(&model.text, config.vocab_size, &folder.join("tokenizer.json"), &mut writer)?;
    let mut sources = Vec::new();
    if let Some(scaling) = &config.rope_scaling {
        writer.tensor(ROPE_FREQS, &[config.head_dim as u64 / 2], GgmlType::F32);
        sources.push(Source::Values(scaling::factors(config, scaling)));
    }
    for (ours, shape) in config.parameter_shapes() {
        let theirs = gguf_name(config.family, &ours).expect(NAMED);
        writer.tensor(theirs, &gguf_dims(&shape), stored_as(&shape, precision.kind()));
        sources.push(Source::Parameter(ours));
    }
    let mut sources = sources.into_iter();
    writer.write(target, |tensor| {
        let values = match sources.next().expect("each tensor was announced with its source") {
            Source::Values(values) => values,
            Source::Parameter(name) => {
                values::to_gguf(config, &name, f32_values(model.parameters.get(&name)?)?)
            }
        };
        Ok(encode(&values, tensor.kind))
    })
}

const NAMED: &str = "every parameter of a decoder has a name in llama.cpp";

/// How a parameter of this shape is stored where matrices are stored as `matrices`: llama.cpp multiplies by vectors, and by
/// the kernels of short convolutions, in f32 alone.
pub(super) fn stored_as(shape: &[usize], matrices: GgmlType) -> GgmlType {
    if shape.len() == 2 { matrices } else { GgmlType::F32 }
}

/// Where a tensor's values come from.
enum Source {
    Parameter(String),
    Values(Vec<f32>),
}

fn encode(values: &[f32], kind: GgmlType) -> Vec<u8> {
    match kind {
        GgmlType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        GgmlType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Reads a GGUF file of a known architecture with F32, F16, BF16 or Q8_0 weights.
///
/// # Errors
/// A file that breaks a rule; parts that the decoder does not compute.
pub fn import(path: &Path) -> Result<Model, FileError> {
    let file = Gguf::open(path)?;
    check_model(&file)?;
    let config = read_config(&file)?;
    let mut rest: HashMap<&str, &TensorInfo> =
        file.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut parameters = Parameters::default();
    for (name, shape) in config.parameter_shapes() {
        let theirs = gguf_name(config.family, &name).expect(NAMED);
        let (expected, path) = (gguf_dims(&shape), || path.to_owned());
        let as_sizes = |dims: &[u64]| dims.iter().map(|&dim| dim as usize).collect::<Vec<_>>();
        let Some(tensor) = rest.remove(theirs.as_str()) else {
            let expected = as_sizes(&expected);
            return Err(FileError::MissingTensor { path: path(), tensor: theirs, expected });
        };
        if tensor.dims != expected {
            let (found, expected) = (as_sizes(&tensor.dims), as_sizes(&expected));
            return Err(FileError::Shape { path: path(), tensor: theirs, found, expected });
        }
        let values = values::from_gguf(&config, &name, file.tensor_f32(&theirs)?);
        parameters.insert(name, Var::from_vec(values, shape, &Device::Cpu)?)?;
    }
    rest.remove(ROPE_FREQS); // read with the configuration
    // The first by name, so that the same file always gives the same message.
    if let Some(tensor) = rest.into_values().min_by(|a, b| a.name.cmp(&b.name)) {
        let found = tensor.dims.iter().map(|&dim| dim as usize).collect();
        return Err(FileError::ExtraTensor { path: path.to_owned(), tensor: tensor.name.clone(), found });
    }
    Ok(Model { config, parameters, text: gguf_tokenizer::read(&file)? })
}
