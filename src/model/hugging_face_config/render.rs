//! A decoder as the `config.json` that transformers loads as this decoder.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::TokenIds;
use super::features::names;
use crate::model::features::{AttentionBias, Family};
use crate::model::file_error::FileError;
use crate::model::spec::{AttentionSpec, BlockSpec, DecoderConfig, Mixer, first_difference};

/// Keys that get a list, one entry per block, where blocks differ. transformers' own models take one number only, and
/// refuse a list; nothing else could load such weights.
const PER_BLOCK: [&str; 3] = ["num_attention_heads", "num_key_value_heads", "intermediate_size"];

/// The object of a `config.json`, which will be at this path.
///
/// # Errors
/// Blocks that differ in what the file has one value for.
pub fn render(config: &DecoderConfig, ids: &TokenIds, path: &Path) -> Result<Value, FileError> {
    if let Some(difference) = first_difference(&config.blocks, &PER_BLOCK) {
        let expected = format!("for a config.json {}: it has one value for all", difference.expected());
        return Err(FileError::key(path, difference.key, difference.found(), expected));
    }
    let (architecture, model_type) = names(config.family);
    let eos = match ids.eos.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let attention = attention(config);
    let of_attention =
        |block: &BlockSpec, of: fn(&AttentionSpec) -> usize| of(block.attention().unwrap_or(&attention));
    let mut object = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": counts(config, |block| block.ffn.width),
        "num_hidden_layers": config.layers(),
        "num_attention_heads": counts(config, |block| of_attention(block, |a| a.heads)),
        "num_key_value_heads": counts(config, |block| of_attention(block, |a| a.kv_heads)),
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_position,
        "attention_bias": attention.bias == AttentionBias::All,
        "bos_token_id": ids.bos,
        "eos_token_id": eos,
        "pad_token_id": ids.pad,
        "torch_dtype": "float32",
    });
    let object_mut = object.as_object_mut().expect("the literal above is an object");
    rope(config, &attention, object_mut);
    family_keys(config, &attention, object_mut);
    Ok(object)
}

/// The decoder's attention. Where no block has any, numbers that transformers wants to see all the same: those that the sizes
/// of a DeltaNet follow from where a recipe has no others.
fn attention(config: &DecoderConfig) -> AttentionSpec {
    if let Some(attention) = config.attention().next() {
        return attention.clone();
    }
    let (heads, head_dim) = config.delta_net().map_or((1, 2), |shape| (shape.key_heads, shape.key_dim));
    AttentionSpec::usual(config.family, heads, heads, head_dim)
}

/// One number where all blocks have the same, else a list.
fn counts(config: &DecoderConfig, of: impl Fn(&BlockSpec) -> usize) -> Value {
    let counts: Vec<usize> = config.blocks.iter().map(of).collect();
    match counts.first() {
        Some(first) if counts.iter().all(|count| count == first) => json!(first),
        _ => json!(counts),
    }
}

fn rope(config: &DecoderConfig, attention: &AttentionSpec, object: &mut Map<String, Value>) {
    let mut scaling = attention.rope_scaling.as_ref().map(|scaling| {
        json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        })
    });
    if config.family != Family::Qwen3_5 {
        object.insert("rope_theta".into(), json!(attention.rope_theta));
        object.insert("rope_scaling".into(), json!(scaling));
        return;
    }
    // Younger than the two keys above: transformers has only ever read this one for it.
    let rope = scaling.get_or_insert_with(|| json!({"rope_type": "default"}));
    rope["rope_theta"] = json!(attention.rope_theta);
    rope["partial_rotary_factor"] = json!(attention.rotary_dim as f64 / attention.head_dim as f64);
    if let Some(sections) = &config.features.rotary_sections {
        rope["mrope_section"] = json!(sections);
        rope["mrope_interleaved"] = json!(true);
    }
    object.insert("rope_parameters".into(), json!(scaling));
}

fn family_keys(config: &DecoderConfig, attention: &AttentionSpec, object: &mut Map<String, Value>) {
    let mut set = |key: &str, value: Value| object.insert(key.to_owned(), value);
    let kinds = || {
        let kind = |block: &BlockSpec| match &block.mixer {
            Mixer::Attention(AttentionSpec { window: None, .. }) => "full_attention",
            Mixer::Attention(_) => "sliding_attention",
            Mixer::DeltaNet(_) => "linear_attention",
        };
        json!(config.blocks.iter().map(kind).collect::<Vec<_>>())
    };
    let window = config.windows().next();
    match config.family {
        Family::Llama => {
            set("mlp_bias", json!(config.blocks.first().is_some_and(|block| block.ffn.bias)));
        }
        Family::Qwen2 | Family::Qwen3 => {
            set("use_sliding_window", json!(window.is_some()));
            if window.is_some() {
                set("sliding_window", json!(window));
                set("layer_types", kinds());
            }
        }
        Family::Gemma2 => {
            set("hidden_activation", json!("gelu_pytorch_tanh"));
            // An integer in transformers, which refuses 256.0.
            let scalar = attention.query_scalar;
            let whole = scalar.fract() == 0.0;
            set("query_pre_attn_scalar", if whole { json!(scalar as u64) } else { json!(scalar) });
            set("attn_logit_softcapping", json!(attention.cap));
            set("final_logit_softcapping", json!(config.features.logit_cap));
            set("sliding_window", json!(window));
            set("layer_types", kinds());
        }
        Family::Qwen3_5 => {
            set("layer_types", kinds());
            if let Some(shape) = config.delta_net() {
                set("linear_num_key_heads", json!(shape.key_heads));
                set("linear_num_value_heads", json!(shape.value_heads));
                set("linear_key_head_dim", json!(shape.key_dim));
                set("linear_value_head_dim", json!(shape.value_dim));
                set("linear_conv_kernel_dim", json!(shape.kernel));
            }
        }
    }
}
