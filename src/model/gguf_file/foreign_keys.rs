//! Keys of an architecture that an import doesn't read: each must have a value that changes
//! nothing, or the file is refused. So an import never drops something that llama.cpp computes, not
//! even for unknown keys.

use crate::gguf::{Gguf, Value};
use crate::model::features::Family;
use crate::model::file_error::FileError;

/// Keys that are read for every family, without the architecture's name.
const READ: [&str; 13] = [
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    // Compared with the width of a head.
    "rope.dimension_count",
    // Checked by `refuse`.
    "rope.scaling.type",
];

const GEMMA2: [&str; 5] = [
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    // Refused with its own reason.
    "rope.freq_base_swa",
];

const QWEN3_5: [&str; 8] = [
    "rope.dimension_sections",
    "ssm.conv_kernel",
    "ssm.state_size",
    "ssm.group_count",
    "ssm.time_step_rank",
    "ssm.inner_size",
    "full_attention_interval",
    "attention.recurrent_layers",
];

/// Values with which a key changes nothing; booleans count as 0 or 1.
const NEUTRAL: [(&str, &[f64]); 23] = [
    ("attention.causal", &[1.0]),
    ("attention.sliding_window", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.scale", &[0.0]),
    ("attention.output_scale", &[0.0, 1.0]),
    ("attention.temperature_scale", &[0.0]),
    ("attention.shared_kv_layers", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("expert_count", &[0.0]),
    ("expert_used_count", &[0.0]),
    ("nextn_predict_layers", &[0.0]),
    ("pooling_type", &[0.0]),
    ("use_parallel_residual", &[0.0]),
    ("swin_norm", &[0.0]),
    ("rope.scale_linear", &[0.0, 1.0]),
    ("rope.scaling.factor", &[0.0, 1.0]),
    ("rope.scaling.attn_factor", &[1.0]),
    ("rope.scaling.yarn_log_multiplier", &[0.0]),
];

/// Keys that are only informative, or used by scalings that are refused.
const TOLD: [&str; 3] =
    ["tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"];

/// Refuses a file if a key of its architecture asks for something that the decoder doesn't
/// compute.
///
/// # Errors
/// The first such key of the file, with its value.
pub(super) fn refuse(file: &Gguf, architecture: &str, family: Family) -> Result<(), FileError> {
    let own: &[&str] = match family {
        Family::Gemma2 => &GEMMA2,
        Family::Qwen3_5 => &QWEN3_5,
        Family::Llama | Family::Qwen2 | Family::Qwen3 => &[],
    };
    let scaling = file.find::<&str>(&format!("{architecture}.rope.scaling.type"))?;
    let nothing = "nothing: the decoder does not compute it";
    // llama.cpp defaults to linear scaling, so only the factor counts.
    if let Some(kind) = scaling.filter(|kind| !matches!(*kind, "none" | "linear")) {
        let key = format!("{architecture}.rope.scaling.type");
        return Err(FileError::key(file.path(), key, format!("{kind:?}"), nothing));
    }
    for (key, value) in file.metadata() {
        let Some(name) = key.strip_prefix(architecture).and_then(|rest| rest.strip_prefix('.')) else {
            continue;
        };
        let unscaled = scaling == Some("none") && matches!(name, "rope.scaling.factor" | "rope.scale_linear");
        if READ.contains(&name) || own.contains(&name) || TOLD.contains(&name) || unscaled {
            continue;
        }
        let neutral = NEUTRAL.iter().find(|(neutral, _)| *neutral == name).map(|(_, values)| *values);
        let same = |found: f64| neutral.is_some_and(|values| values.iter().any(|v| (v - found).abs() == 0.0));
        if !number(value).is_some_and(same) {
            return Err(FileError::key(file.path(), key, shown(value), nothing));
        }
    }
    Ok(())
}

fn number(value: &Value) -> Option<f64> {
    Some(match value {
        Value::U8(n) => (*n).into(),
        Value::I8(n) => (*n).into(),
        Value::U16(n) => (*n).into(),
        Value::I16(n) => (*n).into(),
        Value::U32(n) => (*n).into(),
        Value::I32(n) => (*n).into(),
        Value::F32(n) => (*n).into(),
        Value::F64(n) => *n,
        Value::U64(n) => *n as f64,
        Value::I64(n) => *n as f64,
        Value::Bool(truth) => f64::from(u8::from(*truth)),
        Value::String(_) | Value::Array(_) => return None,
    })
}

fn shown(value: &Value) -> String {
    match (value, number(value)) {
        (Value::Bool(truth), _) => truth.to_string(),
        (Value::String(text), _) => format!("{text:?}"),
        (Value::F32(number), _) => number.to_string(),
        (_, Some(number)) => number.to_string(),
        (other, None) => other.type_name(),
    }
}
