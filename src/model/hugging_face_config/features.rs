//! The architecture of a `config.json` and its features. Every key that changes the mathematics is
//! read or refused.

use serde_json::Value;

use super::keys::Keys;
use super::rope;
use crate::model::features::{AttentionBias, DEFAULT_WINDOW, DeltaNetShape, Family, Features, Mixer};
use crate::model::file_error::FileError;

/// The architecture's name in `architectures`, and its `model_type`.
pub(super) fn names(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Family::Gemma2 => ("Gemma2ForCausalLM", "gemma2"),
        Family::Qwen3_5 => ("Qwen3_5ForCausalLM", "qwen3_5_text"),
    }
}

/// Keys with the number of experts in a mixture of experts.
const EXPERTS: [&str; 3] = ["num_experts", "num_local_experts", "n_routed_experts"];
/// Objects that describe parts other than the text model.
const OTHER_PARTS: [&str; 3] = ["vision_config", "audio_config", "text_config"];

/// The family of a file.
pub(super) fn family(keys: &Keys) -> Result<Family, FileError> {
    let key = if keys.get("architectures").is_some() { "architectures" } else { "model_type" };
    let name = match keys.get(key) {
        Some(Value::Array(names)) => names.first().and_then(Value::as_str),
        Some(Value::String(name)) => Some(name.as_str()),
        _ => None,
    };
    let lower = name.unwrap_or_default().to_lowercase();
    let sparse = ["moe", "mixtral", "qwen3next", "qwen3_next"].iter().any(|part| lower.contains(part));
    if sparse {
        return Err(keys.wrong(key, "a dense model: mixtures of experts are not computed"));
    }
    for key in EXPERTS {
        if keys.get(key).is_some_and(|value| value.as_u64() != Some(0)) {
            return Err(keys.wrong(key, "nothing: mixtures of experts are not computed"));
        }
    }
    for key in OTHER_PARTS {
        if keys.get(key).is_some() {
            return Err(keys.wrong(key, "nothing: only text models are computed, with their keys at the top"));
        }
    }
    if ["conditionalgeneration", "vl", "vision"].iter().any(|part| lower.contains(part)) {
        return Err(keys.wrong(key, "a text model (...ForCausalLM): pictures and sound are not computed"));
    }
    let known = |family: &Family| {
        let (architecture, model_type) = names(*family);
        name == Some(if key == "architectures" { architecture } else { model_type })
    };
    Family::ALL.into_iter().find(known).ok_or_else(|| {
        let all: Vec<_> = Family::ALL
            .into_iter()
            .map(|family| if key == "architectures" { names(family).0 } else { names(family).1 })
            .collect();
        keys.wrong(key, format!("one of {}", all.join(", ")))
    })
}

/// Keys of related architectures that change the forward pass unless they have this value.
const NEUTRAL: [(&str, f64); 4] = [
    ("embedding_multiplier", 1.0),
    ("residual_multiplier", 1.0),
    ("logits_scaling", 1.0),
    ("logit_scale", 1.0),
];

/// The features of the file's decoder.
pub(super) fn features(
    keys: &Keys,
    family: Family,
    layers: usize,
    heads: usize,
    head_dim: usize,
) -> Result<Features, FileError> {
    refuse_foreign(keys, family)?;
    let usual = family.features(layers, heads, head_dim);
    let attention_bias = match family {
        Family::Qwen2 => AttentionBias::QueryKeyValue,
        _ if keys.flag("attention_bias", false)? => AttentionBias::All,
        _ => AttentionBias::None,
    };
    let mut features = Features { attention_bias, mixers: mixers(keys, family, layers)?, ..usual };
    match family {
        Family::Llama => features.ffn_bias = keys.flag("mlp_bias", false)?,
        Family::Qwen2 | Family::Qwen3 => {}
        Family::Gemma2 => {
            // Not the width of a head but the value of the larger published models.
            features.query_scalar = keys.optional_positive("query_pre_attn_scalar")?.unwrap_or(256.0);
            features.attention_cap = cap(keys, "attn_logit_softcapping", features.attention_cap)?;
            features.logit_cap = cap(keys, "final_logit_softcapping", features.logit_cap)?;
        }
        Family::Qwen3_5 => {
            features.rotary_dim = rotary_dim(keys, head_dim)?;
            features.rotary_sections = rotary_sections(keys)?;
        }
    }
    Ok(features)
}

/// A soft cap; a missing key means the default, `null` none.
fn cap(keys: &Keys, key: &str, usual: Option<f64>) -> Result<Option<f64>, FileError> {
    if keys.object.contains_key(key) { keys.optional_positive(key) } else { Ok(usual) }
}

/// Refuses what the decoder of this family doesn't compute.
fn refuse_foreign(keys: &Keys, family: Family) -> Result<(), FileError> {
    if keys.get("quantization_config").is_some() {
        return Err(keys.wrong("quantization_config", "nothing: weights must be F32, F16 or BF16"));
    }
    for (key, neutral) in NEUTRAL {
        if keys.get(key).is_some_and(|value| value.as_f64() != Some(neutral)) {
            return Err(keys.wrong(key, format!("{neutral} or nothing")));
        }
    }
    let gemma = family == Family::Gemma2;
    for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
        if !gemma && keys.get(key).is_some_and(|value| value.as_f64() != Some(0.0)) {
            return Err(keys.wrong(key, "nothing: only Gemma 2 has soft caps"));
        }
    }
    if family != Family::Llama && keys.flag("mlp_bias", false)? {
        return Err(keys.wrong("mlp_bias", "false or nothing: only Llama has such biases"));
    }
    if keys.flag("use_bidirectional_attention", false)? {
        return Err(keys.wrong("use_bidirectional_attention", "false or nothing: attention is causal"));
    }
    if !keys.flag("is_causal", true)? {
        return Err(keys.wrong("is_causal", "true or nothing: attention is causal"));
    }
    if family == Family::Qwen3_5 && !keys.flag("attn_output_gate", true)? {
        return Err(keys.wrong("attn_output_gate", "true or nothing"));
    }
    let (key, expected) =
        if gemma { ("hidden_activation", "gelu_pytorch_tanh") } else { ("hidden_act", "silu") };
    match keys.get(key).map(Value::as_str) {
        None => {}
        Some(Some(found)) if found == expected => {}
        Some(_) => return Err(keys.wrong(key, format!("\"{expected}\""))),
    }
    Ok(())
}

/// How each block mixes tokens, from `layer_types` or the keys that determine it.
fn mixers(keys: &Keys, family: Family, layers: usize) -> Result<Vec<Mixer>, FileError> {
    let window = window(keys, family)?;
    let kinds = match keys.texts("layer_types")? {
        Some(kinds) if kinds.len() == layers => kinds,
        Some(kinds) => {
            let found = format!("{} entries", kinds.len());
            let expected = format!("{layers}, one per layer (num_hidden_layers)");
            return Err(FileError::key(keys.path, "layer_types", found, expected));
        }
        None => default_kinds(keys, family, layers, window.is_some())?,
    };
    let delta_net = (family == Family::Qwen3_5).then(|| delta_net(keys)).transpose()?;
    let kind = |kind: &str| match (kind, window, delta_net) {
        ("full_attention", ..) => Some(Mixer::Attention { window: None }),
        ("sliding_attention", Some(window), _) => Some(Mixer::Attention { window: Some(window) }),
        ("linear_attention", _, Some(shape)) => Some(Mixer::DeltaNet(shape)),
        _ => None,
    };
    let expected = match (window, delta_net) {
        (_, Some(_)) => "only \"full_attention\" and \"linear_attention\"",
        (Some(_), _) => "only \"full_attention\" and \"sliding_attention\"",
        _ => "only \"full_attention\": no sliding window is in use",
    };
    kinds.into_iter().map(kind).collect::<Option<_>>().ok_or_else(|| keys.wrong("layer_types", expected))
}

/// The sliding window, if one is used.
fn window(keys: &Keys, family: Family) -> Result<Option<usize>, FileError> {
    match family {
        // Qwen declares a window that only applies if a flag is set.
        Family::Qwen2 | Family::Qwen3 if keys.flag("use_sliding_window", false)? => {
            keys.get("sliding_window").map(|_| keys.count("sliding_window")).transpose()
        }
        Family::Qwen2 | Family::Qwen3 => Ok(None),
        Family::Gemma2 if keys.object.get("sliding_window") == Some(&Value::Null) => Ok(None),
        Family::Gemma2 => keys.count_or("sliding_window", Some(DEFAULT_WINDOW)).map(Some),
        Family::Llama | Family::Qwen3_5 => {
            if keys.get("sliding_window").is_some() {
                return Err(keys.wrong("sliding_window", "null or nothing: this architecture has no windows"));
            }
            if keys.flag("use_sliding_window", false)? {
                let expected = "false or nothing: this architecture has no windows";
                return Err(keys.wrong("use_sliding_window", expected));
            }
            Ok(None)
        }
    }
}

/// `layer_types` for files without it.
fn default_kinds(
    keys: &Keys,
    family: Family,
    layers: usize,
    windowed: bool,
) -> Result<Vec<&'static str>, FileError> {
    let windows_from = match family {
        Family::Qwen2 | Family::Qwen3 if windowed => match keys.get("max_window_layers") {
            // The published default, which excludes all layers of a small model.
            None => 28,
            Some(value) => {
                value.as_u64().ok_or_else(|| keys.wrong("max_window_layers", "a whole number"))? as usize
            }
        },
        _ => layers,
    };
    let interval = match family {
        Family::Qwen3_5 => keys.count_or("full_attention_interval", Some(4))?,
        _ => 1,
    };
    Ok((0..layers)
        .map(|layer| match family {
            Family::Gemma2 if layer % 2 == 0 && windowed => "sliding_attention",
            Family::Qwen3_5 if (layer + 1) % interval != 0 => "linear_attention",
            _ if layer >= windows_from => "sliding_attention",
            _ => "full_attention",
        })
        .collect())
}

fn delta_net(keys: &Keys) -> Result<DeltaNetShape, FileError> {
    let shape = DeltaNetShape {
        key_heads: keys.count("linear_num_key_heads")?,
        value_heads: keys.count("linear_num_value_heads")?,
        key_dim: keys.count("linear_key_head_dim")?,
        value_dim: keys.count("linear_value_head_dim")?,
        kernel: keys.count("linear_conv_kernel_dim")?,
    };
    if !shape.value_heads.is_multiple_of(shape.key_heads) {
        let expected = format!("a multiple of {} (linear_num_key_heads)", shape.key_heads);
        return Err(keys.wrong("linear_num_value_heads", expected));
    }
    Ok(shape)
}

/// Rotated dimensions of a head: a fraction of it, a quarter by default.
fn rotary_dim(keys: &Keys, head_dim: usize) -> Result<usize, FileError> {
    let nested = rope::holder(keys)?;
    let key = "partial_rotary_factor";
    let holder = nested.filter(|nested| nested.get(key).is_some()).unwrap_or(*keys);
    let share = holder.optional_positive(key)?.unwrap_or(0.25);
    let dim = (head_dim as f64 * share) as usize;
    if share > 1.0 || dim < 2 || dim % 2 == 1 {
        let expected = format!("a share of head_dim ({head_dim}) that is an even number of dimensions");
        return Err(holder.wrong(key, expected));
    }
    Ok(dim)
}

fn rotary_sections(keys: &Keys) -> Result<Option<Vec<usize>>, FileError> {
    let Some(rope) = rope::holder(keys)? else { return Ok(None) };
    let Some(value) = rope.get("mrope_section") else { return Ok(None) };
    let small = |value: &Value| value.as_u64().filter(|&n| n <= 1 << 16).map(|n| n as usize);
    let sections: Option<Vec<usize>> = value
        .as_array()
        .filter(|all| (1..=4).contains(&all.len()))
        .and_then(|all| all.iter().map(small).collect());
    sections.map(Some).ok_or_else(|| rope.wrong("mrope_section", "1 to 4 whole numbers"))
}
