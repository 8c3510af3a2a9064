//! Reads and writes the `config.json` of a Hugging Face folder; reading refuses everything unknown
//! that changes the mathematics.

use std::path::Path;

mod features;
mod keys;
mod render;
mod rope;

use serde_json::{Map, Value};

use super::file_error::FileError;
use super::{DecoderConfig, Family};
use keys::Keys;
pub use render::render;

/// The largest number of blocks, that of llama.cpp.
const MAX_LAYERS: usize = 512;

/// Token ids that `config.json` names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenIds {
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// Ends of generation, the usual one first.
    pub eos: Vec<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// The token for unknown text. Only `tokenizer_config.json` names it.
    pub unk: Option<u32>,
}

/// Reads the object of a `config.json`.
///
/// # Errors
/// The first key that is missing, has the wrong type, or asks for something that the decoder
/// doesn't compute.
pub fn parse(path: &Path, object: &Map<String, Value>) -> Result<(DecoderConfig, TokenIds), FileError> {
    let keys = Keys { path, object, prefix: "" };
    let family = features::family(&keys)?;
    let (hidden_size, heads) = (keys.count("hidden_size")?, keys.count("num_attention_heads")?);
    // Defaults that follow from other keys. Defaults of one model size are never meant.
    let plain = matches!(family, Family::Llama | Family::Qwen2);
    let null = object.get("num_key_value_heads") == Some(&Value::Null);
    let kv_heads =
        keys.count_or("num_key_value_heads", (family == Family::Llama || null).then_some(heads))?;
    let even = plain && hidden_size.is_multiple_of(heads);
    let head_dim = keys.count_or("head_dim", even.then(|| hidden_size / heads))?;
    if heads % kv_heads != 0 {
        return Err(keys.wrong("num_key_value_heads", format!("a divisor of {heads} (num_attention_heads)")));
    }
    if head_dim % 2 != 0 {
        return Err(keys.wrong("head_dim", "an even number (rotary pairs)"));
    }
    let layers = keys.count("num_hidden_layers")?;
    if layers > MAX_LAYERS {
        return Err(keys.wrong("num_hidden_layers", format!("at most {MAX_LAYERS}")));
    }
    let features = features::features(&keys, family, layers, heads, head_dim)?;
    let (rope_theta, rope_scaling) = rope::read(&keys, family)?;
    let config = DecoderConfig {
        family,
        vocab_size: keys.count("vocab_size")?,
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn: keys.count("intermediate_size")?,
        rms_eps: keys.positive("rms_norm_eps")?,
        rope_theta,
        rope_scaling,
        tied: keys.flag("tie_word_embeddings", family == Family::Gemma2)?,
        max_position: keys.count("max_position_embeddings")?,
        features,
    };
    Ok((config, token_ids(&keys)?))
}

/// The ids under `eos_token_id` of another file, such as `generation_config.json`; empty if the
/// key is missing.
///
/// # Errors
/// Values that are no ids.
pub fn ends(path: &Path, object: &Map<String, Value>) -> Result<Vec<u32>, FileError> {
    end_ids(&Keys { path, object, prefix: "" })
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn end_ids(keys: &Keys) -> Result<Vec<u32>, FileError> {
    let ids = match keys.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().map(id).collect::<Option<_>>(),
        Some(value) => id(value).map(|id| vec![id]),
        None => Some(vec![]),
    };
    ids.ok_or_else(|| keys.wrong("eos_token_id", "a token id or a list of them"))
}

fn token_ids(keys: &Keys) -> Result<TokenIds, FileError> {
    let one = |key: &str| match keys.get(key) {
        None => Ok(None),
        Some(value) => id(value).map(Some).ok_or_else(|| keys.wrong(key, "a token id")),
    };
    Ok(TokenIds { bos: one("bos_token_id")?, eos: end_ids(keys)?, pad: one("pad_token_id")?, unk: None })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::RopeScaling;

    fn config() -> DecoderConfig {
        DecoderConfig {
            family: Family::Llama,
            vocab_size: 300,
            hidden_size: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 96,
            rms_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: Some(RopeScaling {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position: 64,
            }),
            tied: true,
            max_position: 512,
            features: Family::Llama.features(2, 4, 16),
        }
    }

    fn read(value: &Value) -> Result<(DecoderConfig, TokenIds), String> {
        parse(Path::new("config.json"), value.as_object().unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let ids = TokenIds { bos: Some(1), eos: vec![2, 3], pad: None, unk: None };
        for family in Family::ALL {
            let config = DecoderConfig { family, features: family.features(2, 4, 16), ..config() };
            assert_eq!(read(&render(&config, &ids)).unwrap(), (config, ids.clone()));
        }
    }

    #[test]
    fn the_rotary_keys_of_transformers_5_are_read() {
        let mut value = render(&config(), &TokenIds::default());
        let object = value.as_object_mut().unwrap();
        let mut rope = object.remove("rope_scaling").unwrap();
        rope["rope_theta"] = object.remove("rope_theta").unwrap();
        object.insert("rope_parameters".into(), rope);
        assert_eq!(read(&value).unwrap().0, config());
    }

    /// If both are there, transformers takes `rope_scaling` and ignores the other entirely.
    #[test]
    fn one_of_two_places_for_rotary_keys_counts() {
        let scaling = render(&config(), &TokenIds::default())["rope_scaling"].clone();
        let read_with = |change: &dyn Fn(&mut Map<String, Value>)| {
            let mut value = render(&config(), &TokenIds::default());
            change(value.as_object_mut().unwrap());
            read(&value).map(|(config, _)| (config.rope_theta, config.rope_scaling))
        };
        let both = |parameters: Value, scaling: Value| {
            read_with(&move |object| {
                object.insert("rope_parameters".into(), parameters.clone());
                object.insert("rope_scaling".into(), scaling.clone());
            })
        };
        let plain = json!({"rope_type": "default", "rope_theta": 20_000.0});
        let llama3 = config().rope_scaling;
        assert_eq!(both(plain.clone(), scaling.clone()).unwrap(), (500_000.0, llama3.clone()));
        for kind in ["yarn", "dynamic", "longrope", "linear"] {
            let message = both(plain.clone(), json!({"rope_type": kind, "factor": 4.0})).unwrap_err();
            assert!(message.contains("\"rope_scaling.rope_type\"") && message.contains(kind), "{message}");
            let message = both(plain.clone(), json!({"type": kind, "factor": 4.0})).unwrap_err();
            assert!(message.contains("\"rope_scaling.type\""), "{message}");
        }
        // If it is empty, the other counts, with its own base.
        for nothing in [Value::Null, json!({})] {
            assert_eq!(both(plain.clone(), nothing).unwrap(), (20_000.0, None));
        }
        let mut own = scaling.clone();
        own["rope_theta"] = json!(300.0);
        assert_eq!(both(plain, own).unwrap(), (300.0, llama3));
        // By kind of layer, as in Gemma 3.
        let message = both(json!({"full_attention": {"rope_type": "yarn"}}), Value::Null).unwrap_err();
        assert!(message.contains("\"rope_parameters.full_attention\""), "{message}");
        let message = read_with(&|object| {
            object.insert("partial_rotary_factor".into(), json!(0.5));
        });
        assert!(message.unwrap_err().contains("\"partial_rotary_factor\""));
    }

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name() {
        let cases = [
            ("architectures", json!(["GemmaForCausalLM"])),
            ("architectures", json!(["Qwen3MoeForCausalLM"])),
            ("architectures", json!(["Qwen3_5ForConditionalGeneration"])),
            ("num_experts", json!(8)),
            ("vision_config", json!({"depth": 2})),
            ("attention_bias", json!("yes")),
            ("hidden_act", json!("gelu")),
            ("use_sliding_window", json!(true)),
            ("sliding_window", json!(4096)),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
            ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
            ("quantization_config", json!({"bits": 4})),
            ("logits_scaling", json!(8.0)),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(15)),
            ("hidden_size", json!("64")),
            ("num_hidden_layers", json!(0)),
            ("rms_norm_eps", Value::Null),
            ("eos_token_id", json!(-1)),
        ];
        for (key, bad) in cases {
            let mut value = render(&config(), &TokenIds::default());
            value[key] = bad;
            let message = read(&value).unwrap_err();
            assert!(message.starts_with(&format!("config.json: key \"{key}")), "{key}: {message}");
        }
    }
}
