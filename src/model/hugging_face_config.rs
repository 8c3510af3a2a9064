//! `config.json` of a Hugging Face folder: read with a refusal for everything that changes the mathematics, and written.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::file_error::FileError;
use super::{DecoderConfig, Family, RopeScaling};

/// Token ids that `config.json` names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenIds {
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// Ends of generation, the usual one first.
    pub eos: Vec<u32>,
    /// Padding.
    pub pad: Option<u32>,
}

/// Keys of related architectures that change the forward pass wherever they have another value than this.
const NEUTRAL: [(&str, f64); 7] = [
    ("embedding_multiplier", 1.0),
    ("residual_multiplier", 1.0),
    ("logits_scaling", 1.0),
    ("logit_scale", 1.0),
    ("partial_rotary_factor", 1.0),
    ("final_logit_softcapping", 0.0),
    ("attn_logit_softcapping", 0.0),
];

/// Reads the object of a `config.json`.
///
/// # Errors
/// The first key that is missing, has the wrong type, or asks for something that the decoder does not compute.
pub fn parse(path: &Path, object: &Map<String, Value>) -> Result<(DecoderConfig, TokenIds), FileError> {
    let keys = Keys { path, object, prefix: "" };
    let family = match keys.get("architectures").and_then(|v| v.as_array()?.first()?.as_str()) {
        Some("LlamaForCausalLM") => Family::Llama,
        Some("Qwen3ForCausalLM") => Family::Qwen3,
        _ => return Err(keys.wrong("architectures", "[\"LlamaForCausalLM\"] or [\"Qwen3ForCausalLM\"]")),
    };
    for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        if keys.get(key).is_some_and(|value| value != &Value::Bool(false)) {
            return Err(keys.wrong(key, "false or nothing: the decoder has no such part"));
        }
    }
    if keys.get("quantization_config").is_some() {
        return Err(keys.wrong("quantization_config", "nothing: weights must be F32, F16 or BF16"));
    }
    let full = |kind: &Value| kind == "full_attention";
    if keys.get("layer_types").is_some_and(|v| !v.as_array().is_some_and(|kinds| kinds.iter().all(full))) {
        return Err(keys.wrong("layer_types", "only \"full_attention\": sliding windows are not computed"));
    }
    // Qwen3 declares a window that is not in use; elsewhere, declaring one means using it.
    if family != Family::Qwen3 && keys.get("sliding_window").is_some() {
        return Err(keys.wrong("sliding_window", "null or nothing: sliding windows are not computed"));
    }
    for (key, neutral) in NEUTRAL {
        if keys.get(key).is_some_and(|value| value.as_f64() != Some(neutral)) {
            return Err(keys.wrong(key, format!("{neutral} or nothing")));
        }
    }
    match keys.get("hidden_act").map(Value::as_str) {
        None | Some(Some("silu")) => {}
        Some(_) => return Err(keys.wrong("hidden_act", "\"silu\"")),
    }

    let (hidden_size, heads) = (keys.count("hidden_size")?, keys.count("num_attention_heads")?);
    let default = |fallback: Option<usize>, key: &str| match (keys.get(key), fallback) {
        (None, Some(value)) => Ok(value),
        _ => keys.count(key),
    };
    // Llama's own defaults; Qwen3's are those of one model size and never meant.
    let llama = family == Family::Llama;
    let kv_heads = default(llama.then_some(heads), "num_key_value_heads")?;
    let head_dim = default((llama && hidden_size % heads == 0).then_some(hidden_size / heads), "head_dim")?;
    if heads % kv_heads != 0 {
        return Err(keys.wrong("num_key_value_heads", format!("a divisor of {heads} (num_attention_heads)")));
    }
    if head_dim % 2 != 0 {
        return Err(keys.wrong("head_dim", "an even number (rotary pairs)"));
    }
    let tied = match keys.get("tie_word_embeddings") {
        None => false,
        Some(Value::Bool(tied)) => *tied,
        Some(_) => return Err(keys.wrong("tie_word_embeddings", "true or false")),
    };
    let (rope_theta, rope_scaling) = rope(&keys)?;
    let config = DecoderConfig {
        family,
        vocab_size: keys.count("vocab_size")?,
        hidden_size,
        layers: keys.count("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        ffn: keys.count("intermediate_size")?,
        rms_eps: keys.positive("rms_norm_eps")?,
        rope_theta,
        rope_scaling,
        tied,
        max_position: keys.count("max_position_embeddings")?,
    };
    Ok((config, token_ids(&keys)?))
}

/// Rotary base and scaling. transformers 5 writes `rope_parameters`, older versions `rope_theta` and `rope_scaling`.
fn rope(keys: &Keys) -> Result<(f64, Option<RopeScaling>), FileError> {
    let nested = match (keys.get("rope_parameters"), keys.get("rope_scaling")) {
        (Some(value), _) => Some(("rope_parameters", value)),
        (None, Some(value)) => Some(("rope_scaling", value)),
        (None, None) => None,
    };
    let top = keys.get("rope_theta").map(|_| keys.positive("rope_theta")).transpose()?;
    let Some((prefix, value)) = nested else { return Ok((top.unwrap_or(10_000.0), None)) };
    let Value::Object(object) = value else { return Err(keys.wrong(prefix, "an object")) };
    let keys = Keys { path: keys.path, object, prefix };
    let inner = keys.get("rope_theta").map(|_| keys.positive("rope_theta")).transpose()?;
    let theta = inner.or(top).unwrap_or(10_000.0);
    if keys.get("partial_rotary_factor").is_some_and(|value| value.as_f64() != Some(1.0)) {
        return Err(keys.wrong("partial_rotary_factor", "1 or nothing"));
    }
    let kind = if keys.get("rope_type").is_some() { "rope_type" } else { "type" };
    match keys.get(kind).map(Value::as_str) {
        None | Some(Some("default")) => Ok((theta, None)),
        Some(Some("llama3")) => {
            let scaling = RopeScaling {
                factor: keys.positive("factor")?,
                low_freq_factor: keys.positive("low_freq_factor")?,
                high_freq_factor: keys.positive("high_freq_factor")?,
                original_max_position: keys.count("original_max_position_embeddings")?,
            };
            if scaling.high_freq_factor <= scaling.low_freq_factor {
                let expected = format!("more than {} (low_freq_factor)", scaling.low_freq_factor);
                return Err(keys.wrong("high_freq_factor", expected));
            }
            Ok((theta, Some(scaling)))
        }
        Some(_) => Err(keys.wrong(kind, "\"default\" or \"llama3\"")),
    }
}

fn token_ids(keys: &Keys) -> Result<TokenIds, FileError> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let one = |key: &str| match keys.get(key) {
        None => Ok(None),
        Some(value) => id(value).map(Some).ok_or_else(|| keys.wrong(key, "a token id")),
    };
    let eos = match keys.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().map(id).collect::<Option<_>>(),
        Some(value) => id(value).map(|id| vec![id]),
        None => Some(vec![]),
    };
    let eos = eos.ok_or_else(|| keys.wrong("eos_token_id", "a token id or a list of them"))?;
    Ok(TokenIds { bos: one("bos_token_id")?, eos, pad: one("pad_token_id")? })
}

/// The object of a `config.json` that transformers loads as this decoder.
pub fn render(config: &DecoderConfig, ids: &TokenIds) -> Value {
    let (architecture, model_type) = match config.family {
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    let scaling = config.rope_scaling.as_ref().map(|scaling| {
        json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        })
    });
    let eos = match ids.eos.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_position,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": ids.bos,
        "eos_token_id": eos,
        "pad_token_id": ids.pad,
        "torch_dtype": "float32",
    })
}

/// An object of the file, and the way to it.
struct Keys<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    /// The value; `null` counts as nothing.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: impl Into<String>) -> FileError {
        let found = self.get(key).map_or("missing".to_owned(), Value::to_string);
        let dot = if self.prefix.is_empty() { "" } else { "." };
        FileError::key(self.path, format!("{}{dot}{key}", self.prefix), found, expected)
    }

    /// A whole number from 1 to 2^31.
    fn count(&self, key: &str) -> Result<usize, FileError> {
        let value = self.get(key).and_then(Value::as_u64).filter(|n| (1..=1 << 31).contains(n));
        value.map(|n| n as usize).ok_or_else(|| self.wrong(key, "a whole number above 0"))
    }

    fn positive(&self, key: &str) -> Result<f64, FileError> {
        let value = self.get(key).and_then(Value::as_f64).filter(|n| *n > 0.0);
        value.ok_or_else(|| self.wrong(key, "a number above 0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        }
    }

    fn read(value: &Value) -> Result<(DecoderConfig, TokenIds), String> {
        parse(Path::new("config.json"), value.as_object().unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let ids = TokenIds { bos: Some(1), eos: vec![2, 3], pad: None };
        for family in [Family::Llama, Family::Qwen3] {
            let config = DecoderConfig { family, ..config() };
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

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name() {
        let cases = [
            ("architectures", json!(["GemmaForCausalLM"])),
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
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
