//! A model as a GGUF file that llama.cpp serves, and back.

use std::path::Path;

use candle_core::{Device, Var};
use half::{bf16, f16};

use super::file_error::FileError;
use super::gguf_names::{deinterleave, gguf_name, interleave, interleaved_heads};
use super::hugging_face::Model;
use super::safetensors_file::f32_values;
use super::{DecoderConfig, Family, Parameters, RopeScaling, gguf_tokenizer};
use crate::digest::Digest;
use crate::gguf::{GgmlType, Gguf, ORIGIN_KEY, Rule, TensorHasher, Writer, check_model};

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

/// Keys in which an export keeps Llama-3's scaling; llama.cpp itself only reads the factors that follow from it.
const SCALING_KEYS: [&str; 4] = [
    "bespoke.rope_scaling.factor",
    "bespoke.rope_scaling.low_freq_factor",
    "bespoke.rope_scaling.high_freq_factor",
    "bespoke.rope_scaling.original_max_position",
];
const ROPE_FREQS: &str = "rope_freqs.weight";

/// Writes a model as a GGUF file, atomically. `tokenizer` is the path of its `tokenizer.json`, for errors.
///
/// # Errors
/// A tokenizer that llama.cpp would treat otherwise; parameters that do not fit; the disk.
pub fn export(
    model: &Model,
    name: &str,
    tokenizer: &Path,
    target: &Path,
    precision: Precision,
) -> Result<(), FileError> {
    let config = &model.config;
    let mut writer = Writer::new();
    write_config(config, name, precision.file_type(), &mut writer);
    gguf_tokenizer::write(&model.text, config.vocab_size, tokenizer, &mut writer)?;
    writer.set(ORIGIN_KEY, content_hash(model)?.to_string());
    let tensors = tensors(config);
    for Tensor { name, dims, .. } in &tensors {
        writer.tensor(name, dims, if dims.len() == 1 { GgmlType::F32 } else { precision.kind() });
    }
    let mut tensors = tensors.into_iter();
    writer.write(target, |tensor| {
        let source = tensors.next().expect("each tensor was announced with its source").source;
        Ok(encode(&source.values(model)?, tensor.kind))
    })
}

/// The hash of a model's tensors as its F32 file has them: what a spoke that is trained on it names.
///
/// # Errors
/// Parameters that do not fit.
pub fn content_hash(model: &Model) -> Result<Digest, FileError> {
    let mut tensors = tensors(&model.config);
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = TensorHasher::default();
    for Tensor { name, dims, source } in tensors {
        hasher.add(&name, &dims, GgmlType::F32, &encode(&source.values(model)?, GgmlType::F32));
    }
    Ok(hasher.finish())
}

/// A tensor of a file to be, in ggml's terms.
struct Tensor {
    name: String,
    dims: Vec<u64>,
    source: Source,
}

/// Where a tensor's values come from.
enum Source {
    Parameter(String),
    Values(Vec<f32>),
}

impl Source {
    /// The values in llama.cpp's order.
    fn values(self, model: &Model) -> Result<Vec<f32>, FileError> {
        match self {
            Self::Values(values) => Ok(values),
            Self::Parameter(name) => {
                let values = f32_values(model.parameters.get(&name)?)?;
                Ok(match interleaved_heads(&model.config, &name) {
                    Some(heads) => interleave(&values, heads, model.config.head_dim),
                    None => values,
                })
            }
        }
    }
}

/// The tensors of a decoder, in the order in which they are written.
fn tensors(config: &DecoderConfig) -> Vec<Tensor> {
    let scaling = config.rope_scaling.iter().map(|scaling| Tensor {
        name: ROPE_FREQS.to_owned(),
        dims: vec![config.head_dim as u64 / 2],
        source: Source::Values(rope_factors(config, scaling)),
    });
    let parameter = |(ours, shape): (String, Vec<usize>)| Tensor {
        name: gguf_name(&ours).expect("every parameter of a decoder has a name in llama.cpp"),
        dims: shape.iter().rev().map(|&dim| dim as u64).collect(),
        source: Source::Parameter(ours),
    };
    scaling.chain(config.parameter_shapes().into_iter().map(parameter)).collect()
}

/// The stored bytes of values of a type of floats: F16, BF16 or else F32.
pub(crate) fn encode(values: &[f32], kind: GgmlType) -> Vec<u8> {
    match kind {
        GgmlType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        GgmlType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Writes what a decoder is; `file_type` is llama.cpp's `LLAMA_FTYPE_*`.
pub(super) fn write_config(config: &DecoderConfig, name: &str, file_type: u32, writer: &mut Writer) {
    let architecture = match config.family {
        Family::Llama => "llama",
        Family::Qwen3 => "qwen3",
    };
    writer.set("general.architecture", architecture).set("general.type", "model").set("general.name", name);
    writer.set("general.file_type", file_type);
    let counts = [
        ("vocab_size", config.vocab_size),
        ("context_length", config.max_position),
        ("embedding_length", config.hidden_size),
        ("block_count", config.layers),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ];
    for (key, value) in counts {
        writer.set(format!("{architecture}.{key}"), value as u32);
    }
    writer.set(format!("{architecture}.attention.layer_norm_rms_epsilon"), config.rms_eps as f32);
    writer.set(format!("{architecture}.rope.freq_base"), config.rope_theta as f32);
    if let Some(scaling) = &config.rope_scaling {
        for (key, value) in SCALING_KEYS.into_iter().zip(scaling_values(scaling)) {
            writer.set(key, value);
        }
    }
}

fn scaling_values(scaling: &RopeScaling) -> [f64; 4] {
    let RopeScaling { factor, low_freq_factor, high_freq_factor, original_max_position } = *scaling;
    [factor, low_freq_factor, high_freq_factor, original_max_position as f64]
}

/// Divisors of the rotary frequencies, `[head_dim / 2]` (Llama 3.1's piecewise rule).
fn rope_factors(config: &DecoderConfig, scaling: &RopeScaling) -> Vec<f32> {
    let RopeScaling { factor, low_freq_factor: low, high_freq_factor: high, original_max_position } =
        *scaling;
    let context = original_max_position as f64;
    let one = |pair: usize| {
        let exponent = 2.0 * pair as f64 / config.head_dim as f64;
        let wavelength = 2.0 * std::f64::consts::PI * config.rope_theta.powf(exponent);
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..config.head_dim / 2).map(|pair| one(pair) as f32).collect()
}

/// Reads a GGUF file of architecture `llama` or `qwen3` with F32, F16, BF16 or Q8_0 weights.
///
/// # Errors
/// A file that breaks a rule; parts that the decoder does not compute.
pub fn import(path: &Path) -> Result<Model, FileError> {
    let file = Gguf::open(path)?;
    check_model(&file)?;
    let config = read_config(&file)?;
    let mut parameters = Parameters::default();
    for (name, shape) in config.parameter_shapes() {
        let theirs = gguf_name(&name).expect("every parameter of a decoder has a name in llama.cpp");
        // check_model has compared the dimensions with the same sizes that `shape` comes from.
        let values = file.tensor_f32(&theirs)?;
        let values = match interleaved_heads(&config, &name) {
            Some(heads) => deinterleave(&values, heads, config.head_dim),
            None => values,
        };
        parameters.insert(name, Var::from_vec(values, shape, &Device::Cpu)?)?;
    }
    if let Some(bias) = file.tensors().iter().find(|tensor| tensor.name.rsplit('.').next() == Some("bias")) {
        let (tensor, architecture) = (bias.name.clone(), "llama without biases".to_owned());
        return Err(file.error(Rule::UnexpectedTensor { tensor, architecture }).into());
    }
    Ok(Model { config, parameters, text: gguf_tokenizer::read(&file)? })
}

fn read_config(file: &Gguf) -> Result<DecoderConfig, FileError> {
    let architecture: &str = file.get("general.architecture")?;
    let family = match architecture {
        "llama" => Family::Llama,
        "qwen3" => Family::Qwen3,
        other => {
            let expected = "\"llama\" or \"qwen3\"";
            return Err(FileError::key(file.path(), "general.architecture", format!("{other:?}"), expected));
        }
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let count = |name: &str| file.get::<u32>(&key(name)).map(|n| n as usize);
    let optional = |name: &str| file.find::<u32>(&key(name)).map(|n| n.map(|n| n as usize));
    for name in ["rope.scaling.type", "rope.scaling.factor", "attention.sliding_window"] {
        let neutral = |text: &str| text == "none";
        let present = match name {
            "rope.scaling.type" => file.find::<&str>(&key(name))?.is_some_and(|text| !neutral(text)),
            "rope.scaling.factor" => {
                file.find::<f32>(&key(name))?.is_some_and(|factor| (factor - 1.0).abs() > 0.0)
            }
            _ => file.find::<u32>(&key(name))?.is_some_and(|window| window != 0),
        };
        if present {
            return Err(FileError::key(
                file.path(),
                key(name),
                "in use",
                "nothing: the decoder does not compute it",
            ));
        }
    }
    let (hidden_size, heads) = (count("embedding_length")?, count("attention.head_count")?);
    let mut config = DecoderConfig {
        family,
        vocab_size: file.get::<&[String]>("tokenizer.ggml.tokens")?.len(),
        hidden_size,
        layers: count("block_count")?,
        heads,
        kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim: optional("attention.key_length")?.unwrap_or(hidden_size / heads),
        ffn: count("feed_forward_length")?,
        rms_eps: widen(file.get(&key("attention.layer_norm_rms_epsilon"))?),
        rope_theta: widen(file.find(&key("rope.freq_base"))?.unwrap_or(10_000.0)),
        rope_scaling: None,
        tied: file.tensor("output.weight").is_none(),
        max_position: count("context_length")?,
    };
    config.rope_scaling = read_scaling(file, &config)?;
    Ok(config)
}

/// The f64 that is written like this f32: 1e-5 is 1e-5 again, not 9.99999974737875e-6.
fn widen(value: f32) -> f64 {
    value.to_string().parse().expect("what Rust prints for an f32 is a number")
}

/// Llama-3's scaling: from this program's own keys, or recognised by the factors of a published model.
fn read_scaling(file: &Gguf, config: &DecoderConfig) -> Result<Option<RopeScaling>, FileError> {
    if file.tensor(ROPE_FREQS).is_none() {
        return Ok(None);
    }
    let found = file.tensor_f32(ROPE_FREQS)?;
    let close = |scaling: &RopeScaling| {
        let expected = rope_factors(config, scaling);
        expected.iter().zip(&found).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs())
    };
    let scaling = |factor, low_freq_factor, high_freq_factor, original_max_position| RopeScaling {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position,
    };
    let candidates = match file.find::<f64>(SCALING_KEYS[0])? {
        Some(factor) => {
            let [low, high, context] = [1, 2, 3].map(|key| file.get::<f64>(SCALING_KEYS[key]));
            vec![scaling(factor, low?, high?, context? as usize)]
        }
        // Llama 3.1 and 3.2.
        None => vec![scaling(8.0, 1.0, 4.0, 8192), scaling(32.0, 1.0, 4.0, 8192)],
    };
    if let Some(scaling) = candidates.into_iter().find(close) {
        return Ok(Some(scaling));
    }
    let expected = "the factors of Llama 3.1 or 3.2, or those of the bespoke.rope_scaling keys";
    Err(FileError::key(file.path(), ROPE_FREQS, format!("{found:?}"), expected))
}
