//! Writes the `config.json` with which transformers loads a decoder.

use serde_json::{Map, Value, json};

use super::TokenIds;
use super::features::names;
use crate::model::DecoderConfig;
use crate::model::features::{AttentionBias, Family, Mixer};

/// The object of a `config.json`.
pub fn render(config: &DecoderConfig, ids: &TokenIds) -> Value {
    let (architecture, model_type) = names(config.family);
    let eos = match ids.eos.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let features = &config.features;
    let mut object = json!({
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
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_position,
        "attention_bias": features.attention_bias == AttentionBias::All,
        "bos_token_id": ids.bos,
        "eos_token_id": eos,
        "pad_token_id": ids.pad,
        "torch_dtype": "float32",
    });
    let object_mut = object.as_object_mut().expect("the literal above is an object");
    rope(config, object_mut);
    family_keys(config, object_mut);
    object
}

fn rope(config: &DecoderConfig, object: &mut Map<String, Value>) {
    let mut scaling = config.rope_scaling.as_ref().map(|scaling| {
        json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        })
    });
    if config.family != Family::Qwen3_5 {
        object.insert("rope_theta".into(), json!(config.rope_theta));
        object.insert("rope_scaling".into(), json!(scaling));
        return;
    }
    // Newer than the two keys above; transformers has only ever read this key for it.
    let rope = scaling.get_or_insert_with(|| json!({"rope_type": "default"}));
    rope["rope_theta"] = json!(config.rope_theta);
    rope["partial_rotary_factor"] = json!(config.features.rotary_dim as f64 / config.head_dim as f64);
    if let Some(sections) = &config.features.rotary_sections {
        rope["mrope_section"] = json!(sections);
        rope["mrope_interleaved"] = json!(true);
    }
    object.insert("rope_parameters".into(), json!(scaling));
}

fn family_keys(config: &DecoderConfig, object: &mut Map<String, Value>) {
    let features = &config.features;
    let mut set = |key: &str, value: Value| object.insert(key.to_owned(), value);
    let kinds = || {
        let kind = |mixer: &Mixer| match mixer {
            Mixer::Attention { window: None } => "full_attention",
            Mixer::Attention { window: Some(_) } => "sliding_attention",
            Mixer::DeltaNet(_) => "linear_attention",
        };
        json!(features.mixers.iter().map(kind).collect::<Vec<_>>())
    };
    let window = features.windows().next();
    match config.family {
        Family::Llama => {
            set("mlp_bias", json!(features.ffn_bias));
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
            // An integer in transformers, which rejects 256.0.
            let scalar = features.query_scalar;
            let whole = scalar.fract() == 0.0;
            set("query_pre_attn_scalar", if whole { json!(scalar as u64) } else { json!(scalar) });
            set("attn_logit_softcapping", json!(features.attention_cap));
            set("final_logit_softcapping", json!(features.logit_cap));
            set("sliding_window", json!(window));
            set("layer_types", kinds());
        }
        Family::Qwen3_5 => {
            set("layer_types", kinds());
            if let Some(shape) = features.delta_net() {
                set("linear_num_key_heads", json!(shape.key_heads));
                set("linear_num_value_heads", json!(shape.value_heads));
                set("linear_key_head_dim", json!(shape.key_dim));
                set("linear_value_head_dim", json!(shape.value_dim));
                set("linear_conv_kernel_dim", json!(shape.kernel));
            }
        }
    }
}
