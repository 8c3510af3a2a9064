//! The limits of llama.cpp's graphs: decoders beyond them stay Hugging Face folders, and an export
//! says why.

use std::path::Path;

use crate::model::features::{AttentionBias, Family, Mixer};
use crate::model::{DecoderConfig, FileError};

/// Refuses a decoder that llama.cpp would compute differently or not load. `path` is its
/// `config.json`.
///
/// # Errors
/// The key, its value, and what llama.cpp's graph of this architecture has instead.
pub(super) fn check(config: &DecoderConfig, path: &Path) -> Result<(), FileError> {
    let refuse = |key: &str, found: String, expected: &str| {
        Err(FileError::key(path, key, found, format!("for a GGUF file {expected}")))
    };
    let features = &config.features;
    let family = config.family;
    if features.attention_bias == AttentionBias::All && family != Family::Llama {
        let expected = "false: llama.cpp has no bias on the attention output of this architecture";
        return refuse("attention_bias", "true".into(), expected);
    }
    if config.rope_scaling.is_some() && family != Family::Llama {
        let expected = "\"default\": llama.cpp reads Llama 3's factors for the architecture llama alone";
        return refuse("rope_type", "\"llama3\"".into(), expected);
    }
    let short = |window: &usize| *window < config.max_position;
    match family {
        Family::Llama => {}
        Family::Qwen2 | Family::Qwen3 => {
            if let Some(window) = features.windows().find(short) {
                let expected =
                    "none, or max_position_embeddings and more: llama.cpp's graph attends to all tokens";
                return refuse("sliding_window", window.to_string(), expected);
            }
            if family == Family::Qwen2 && config.heads * config.head_dim != config.hidden_size {
                let expected =
                    "hidden_size / num_attention_heads: llama.cpp derives it for the architecture qwen2";
                return refuse("head_dim", config.head_dim.to_string(), expected);
            }
        }
        Family::Gemma2 => {
            if !config.tied {
                let expected = "true: llama.cpp has no head of its own for the architecture gemma2";
                return refuse("tie_word_embeddings", "false".into(), expected);
            }
            if features.windows().next().is_none() {
                let expected =
                    "\"sliding_attention\" at least once: llama.cpp ends the process without a window";
                return refuse("layer_types", "\"full_attention\" alone".into(), expected);
            }
        }
        Family::Qwen3_5 => {
            let attends = features.mixers.iter().any(|mixer| matches!(mixer, Mixer::Attention { .. }));
            let (Some(shape), true) = (features.delta_net(), attends) else {
                let expected = "\"full_attention\" and \"linear_attention\", each at least once: llama.cpp's graph is a hybrid";
                return refuse("layer_types", "one kind alone".into(), expected);
            };
            if shape.key_dim != shape.value_dim {
                let expected =
                    format!("{} (linear_key_head_dim): llama.cpp has one width for both", shape.key_dim);
                return refuse("linear_value_head_dim", shape.value_dim.to_string(), &expected);
            }
        }
    }
    Ok(())
}
