//! The limits of llama.cpp's graphs: decoders beyond them stay Hugging Face folders, and an export
//! says why.

use std::path::Path;

use super::names::architecture;
use crate::model::features::{AttentionBias, Family};
use crate::model::spec::first_difference;
use crate::model::{DecoderConfig, FileError};

/// What each block of a Llama may have another number of, by the names of `config.json`.
const LLAMA_PER_BLOCK: [&str; 3] = ["num_attention_heads", "num_key_value_heads", "intermediate_size"];

/// Refuses a decoder that llama.cpp would compute otherwise, or not load. `path` is its
/// `config.json`.
///
/// # Errors
/// The key, its value, and what llama.cpp's graph of this architecture has instead.
pub(super) fn check(config: &DecoderConfig, path: &Path) -> Result<(), FileError> {
    let refuse = |key: &str, found: String, expected: &str| {
        Err(FileError::key(path, key, found, format!("for a GGUF file {expected}")))
    };
    let family = config.family;
    let may_differ: &[&str] = if family == Family::Llama { &LLAMA_PER_BLOCK } else { &[] };
    if let Some(difference) = first_difference(&config.blocks, may_differ) {
        let expected = format!(
            "{}: llama.cpp has one value for all blocks of the architecture {}",
            difference.expected(),
            architecture(family)
        );
        return refuse(difference.key, difference.found(), &expected);
    }
    let Some(attention) = config.attention().next() else {
        let expected = "\"full_attention\" at least once: llama.cpp has no graph without attention";
        return refuse("layer_types", "\"linear_attention\" alone".into(), expected);
    };
    if attention.bias == AttentionBias::All && family != Family::Llama {
        let expected = "false: llama.cpp has no bias on the attention output of this architecture";
        return refuse("attention_bias", "true".into(), expected);
    }
    if attention.rope_scaling.is_some() && family != Family::Llama {
        let expected = "\"default\": llama.cpp reads Llama 3's factors for the architecture llama alone";
        return refuse("rope_type", "\"llama3\"".into(), expected);
    }
    let short = |window: &usize| *window < config.max_position;
    match family {
        Family::Llama => {}
        Family::Qwen2 | Family::Qwen3 => {
            if let Some(window) = config.windows().find(short) {
                let expected =
                    "none, or max_position_embeddings and more: llama.cpp's graph attends to all tokens";
                return refuse("sliding_window", window.to_string(), expected);
            }
            if family == Family::Qwen2 && attention.heads * attention.head_dim != config.hidden_size {
                let expected =
                    "hidden_size / num_attention_heads: llama.cpp derives it for the architecture qwen2";
                return refuse("head_dim", attention.head_dim.to_string(), expected);
            }
        }
        Family::Gemma2 => {
            if !config.tied {
                let expected = "true: llama.cpp has no head of its own for the architecture gemma2";
                return refuse("tie_word_embeddings", "false".into(), expected);
            }
            if config.windows().next().is_none() {
                let expected =
                    "\"sliding_attention\" at least once: llama.cpp ends the process without a window";
                return refuse("layer_types", "\"full_attention\" alone".into(), expected);
            }
        }
        Family::Qwen3_5 => {
            let Some(shape) = config.delta_net() else {
                let expected = "\"linear_attention\" at least once: llama.cpp's graph is a hybrid";
                return refuse("layer_types", "\"full_attention\" alone".into(), expected);
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
