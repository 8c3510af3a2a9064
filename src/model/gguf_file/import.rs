//! Reads a GGUF file as a model.

use std::collections::HashMap;
use std::path::Path;

use super::config_keys::read_config;
use super::names::{gguf_dims, gguf_name};
use super::scaling::ROPE_FREQS;
use super::{NAMED, values};
use crate::gguf::{Gguf, TensorInfo, check_readable};
use crate::model::file_error::FileError;
use crate::model::hugging_face::{Model, TextSide};
use crate::model::source::read_parameters;
use crate::model::{DecoderConfig, ModelSource, ParameterSpec, gguf_tokenizer};

/// Reads the decoder configuration of a GGUF file of a known architecture, without weights.
///
/// # Errors
/// As [`import`].
pub fn load_config(path: &Path) -> Result<DecoderConfig, FileError> {
    let file = Gguf::open(path)?;
    check_readable(&file)?;
    read_config(&file)
}

/// Reads a GGUF file of a known architecture, with weights of any type that ggml converts to
/// floats.
///
/// # Errors
/// A file that breaks a rule of GGUF; parts that the decoder doesn't compute.
pub fn import(path: &Path) -> Result<Model, FileError> {
    let file = Imported::open(path)?;
    let parameters = read_parameters(&file, |_| true)?;
    Ok(Model { config: file.config, parameters, text: file.text })
}

/// A GGUF file of a known architecture, whose weights are read one at a time.
#[derive(Debug)]
pub struct Imported {
    file: Gguf,
    config: DecoderConfig,
    text: TextSide,
}

impl Imported {
    /// Opens a file and checks that its tensors are the parameters of its configuration, with
    /// their shapes.
    ///
    /// # Errors
    /// As [`import`], except for types of weights, which are read later.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = Gguf::open(path)?;
        check_readable(&file)?;
        let config = read_config(&file)?;
        let mut rest: HashMap<&str, &TensorInfo> =
            file.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        for parameter in config.parameters() {
            let theirs = gguf_name(config.family, parameter.role).expect(NAMED);
            let (expected, path) = (gguf_dims(&parameter.shape()), || path.to_owned());
            let as_sizes = |dims: &[u64]| dims.iter().map(|&dim| dim as usize).collect::<Vec<_>>();
            let Some(tensor) = rest.remove(theirs.as_str()) else {
                let expected = as_sizes(&expected);
                return Err(FileError::MissingTensor { path: path(), tensor: theirs, expected });
            };
            if tensor.dims != expected {
                let (found, expected) = (as_sizes(&tensor.dims), as_sizes(&expected));
                return Err(FileError::Shape { path: path(), tensor: theirs, found, expected });
            }
        }
        rest.remove(ROPE_FREQS); // read with the configuration
        // The first by name, so that a file always gives the same message.
        if let Some(tensor) = rest.into_values().min_by(|a, b| a.name.cmp(&b.name)) {
            let found = tensor.dims.iter().map(|&dim| dim as usize).collect();
            return Err(FileError::ExtraTensor { path: path.to_owned(), tensor: tensor.name.clone(), found });
        }
        let text = gguf_tokenizer::read(&file)?;
        Ok(Self { file, config, text })
    }
}

impl ModelSource for Imported {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }
    fn text(&self) -> &TextSide {
        &self.text
    }
    fn values(&self, parameter: &ParameterSpec) -> Result<Vec<f32>, FileError> {
        let theirs = gguf_name(self.config.family, parameter.role).expect(NAMED);
        Ok(values::from_gguf(&self.config, parameter.role, self.file.tensor_f32(&theirs)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Dequantise, quantise_rows};
    use crate::gguf::{GgmlType, Value, Writer};
    use crate::model::gguf_file::{Precision, encode, export};
    use crate::model::{Role, Uniform, hugging_face, init};

    /// A small Llama whose rows are whole blocks of every type, as an F32 file.
    fn full(folder: &Path) -> Gguf {
        let source = Path::new("tests/fixtures/hf/llama_tied");
        let Model { config, text, .. } = hugging_face::load(source).unwrap();
        let vocab_size = config.vocab_size;
        let config =
            Uniform { vocab_size, hidden_size: 256, layers: 1, head_dim: 64, ffn: 256, ..Uniform::small() };
        let config = config.config();
        let parameters = init::initialise(&config, 7).unwrap();
        let path = folder.join("full.gguf");
        export(&Model { config, parameters, text }, "full", source, &path, Precision::F32).unwrap();
        Gguf::open(&path).unwrap()
    }

    /// A copy of a file with one matrix of another type and additional keys.
    fn copy(full: &Gguf, target: &Path, kind: GgmlType, keys: &[(&str, Value)]) {
        let mut writer = Writer::new();
        for (key, value) in full.metadata().iter().filter(|(key, _)| keys.iter().all(|(k, _)| k != key)) {
            writer.set(key.clone(), value.clone());
        }
        for (key, value) in keys {
            writer.set(*key, value.clone());
        }
        for tensor in full.tensors() {
            let kind = if tensor.name == "blk.0.attn_q.weight" { kind } else { GgmlType::F32 };
            writer.tensor(tensor.name.clone(), &tensor.dims, kind);
        }
        let data = |tensor: &TensorInfo| {
            let values = full.tensor_f32(&tensor.name)?;
            Ok::<_, FileError>(match tensor.kind {
                GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => encode(&values, tensor.kind),
                GgmlType::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
                // Not weights, just the right number of bytes.
                GgmlType::Q8_1 | GgmlType::Q8_K => vec![0; tensor.bytes as usize],
                kind => quantise_rows(kind, &values, tensor.dims[0] as usize),
            })
        };
        writer.write(target, data).unwrap();
    }

    #[test]
    fn every_type_of_weights_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (full, path) = (full(folder.path()), folder.path().join("copy.gguf"));
        let exact = import(full.path()).unwrap();
        let name = "model.layers.0.self_attn.q_proj.weight";
        let values = |model: &Model| -> Vec<f32> {
            model.parameters.get(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let kinds = (0..64).filter_map(GgmlType::from_id);
        let mut read = 0;
        for kind in kinds.filter(|kind| !kind.to_string().starts_with('I') || kind.is_weight()) {
            copy(&full, &path, kind, &[]);
            if matches!(kind, GgmlType::Q8_1 | GgmlType::Q8_K) {
                let message = import(&path).unwrap_err().to_string();
                assert!(message.contains(&kind.to_string()) && message.contains("ggml"), "{message}");
                continue;
            }
            let found = values(&import(&path).unwrap());
            read += 1;
            if matches!(kind, GgmlType::F32 | GgmlType::F64) {
                assert_eq!(found, values(&exact), "{kind}");
                continue;
            }
            // What ggml decodes from the stored bytes, in Hugging Face's order.
            let file = Gguf::open(&path).unwrap();
            let tensor = file.tensor("blk.0.attn_q.weight").unwrap();
            let mut expected = Vec::new();
            Dequantise::of(kind).unwrap().append(&file.tensor_bytes(tensor).unwrap(), &mut expected);
            assert_eq!(found, values::from_gguf(&exact.config, Role::of(name).unwrap(), expected), "{kind}");
        }
        assert_eq!(read, 29);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_key() {
        let folder = tempfile::tempdir().unwrap();
        let (full, path) = (full(folder.path()), folder.path().join("copy.gguf"));
        let import_with = |keys: &[(&str, Value)]| {
            copy(&full, &path, GgmlType::F32, keys);
            import(&path).map_err(|error| error.to_string())
        };
        for (key, value, shown) in [
            ("rope.scale_linear", Value::F32(4.0), "4"),
            ("rope.scaling.factor", Value::F32(2.0), "2"),
            ("rope.scaling.type", Value::String("yarn".into()), "\"yarn\""),
            ("rope.scaling.attn_factor", Value::F32(1.2), "1.2"),
            ("rope.freq_base_swa", Value::F32(10.0), "10"),
            ("attention.causal", Value::Bool(false), "false"),
            ("attention.sliding_window", Value::U32(16), "16"),
            ("attention.clamp_kqv", Value::F32(8.0), "8"),
            ("attention.scale", Value::F32(0.1), "0.1"),
            ("attention.max_alibi_bias", Value::F32(8.0), "8"),
            ("attn_logit_softcapping", Value::F32(50.0), "50"),
            ("final_logit_softcapping", Value::F32(30.0), "30"),
            ("logit_scale", Value::F32(16.0), "16"),
            ("embedding_scale", Value::F32(12.0), "12"),
            ("residual_scale", Value::F32(0.2), "0.2"),
            ("expert_count", Value::U32(8), "8"),
            ("ssm.state_size", Value::U32(8), "8"),
            ("pooling_type", Value::U32(3), "3"),
            ("a.key.of.tomorrow", Value::Bool(true), "true"),
        ] {
            let message = import_with(&[(&format!("llama.{key}"), value)]).unwrap_err();
            let expected = format!("key \"llama.{key}\" is {shown}, expected");
            assert!(message.contains(&expected), "{key}: {message}");
        }
        for (key, value) in [
            ("llama.attention.causal", Value::Bool(true)),
            ("llama.attention.clamp_kqv", Value::F32(0.0)),
            ("llama.rope.scale_linear", Value::F32(1.0)),
            ("llama.rope.scaling.factor", Value::F32(0.0)),
            ("llama.rope.scaling.type", Value::String("linear".into())),
            ("llama.expert_count", Value::U32(0)),
            ("llama.rope.scaling.original_context_length", Value::U32(4096)),
            ("llama.tensor_data_layout", Value::String("Meta AI original pth".into())),
            // Another architecture's, which llama.cpp does not read either.
            ("qwen2.rope.scale_linear", Value::F32(4.0)),
        ] {
            import_with(&[(key, value)]).unwrap();
        }
        // A factor without a scaling that uses it.
        import_with(&[
            ("llama.rope.scaling.type", Value::String("none".into())),
            ("llama.rope.scaling.factor", Value::F32(4.0)),
        ])
        .unwrap();
    }
}
