//! llama.cpp's names of the parameters, and their dimensions in its files.

use crate::model::Family;

/// Hugging Face's and llama.cpp's name of each module of a block (without `model.layers.N.` and
/// `blk.N.`).
const BLOCK: [(&str, &str); 18] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("linear_attn.in_proj_qkv", "attn_qkv"),
    ("linear_attn.in_proj_z", "attn_gate"),
    ("linear_attn.in_proj_a", "ssm_alpha"),
    ("linear_attn.in_proj_b", "ssm_beta"),
    ("linear_attn.conv1d", "ssm_conv1d"),
    ("linear_attn.norm", "ssm_norm"),
    ("linear_attn.out_proj", "ssm_out"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// llama.cpp's name of an architecture.
pub fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Gemma2 => "gemma2",
        Family::Qwen3_5 => "qwen35",
    }
}

/// llama.cpp's name of the parameter with this Hugging Face name, if it has one.
pub fn gguf_name(family: Family, name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    match part {
        "linear_attn.A_log" => return Some(format!("blk.{layer}.ssm_a")),
        "linear_attn.dt_bias" => return Some(format!("blk.{layer}.ssm_dt.bias")),
        _ => {}
    }
    let (module, kind) = part.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let theirs = match (module, family) {
        // The norm before the feed-forward part, unless the file has a separate one.
        ("post_attention_layernorm", Family::Gemma2 | Family::Qwen3_5) => "post_attention_norm",
        ("post_attention_layernorm", _) | ("pre_feedforward_layernorm", Family::Gemma2) => "ffn_norm",
        _ => BLOCK.iter().find(|(ours, _)| *ours == module)?.1,
    };
    Some(format!("blk.{layer}.{theirs}.{kind}"))
}

/// The inverse of [`gguf_name`] for matrices, which have the same names in all families.
pub fn hugging_face_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let part = part.strip_suffix(".weight")?;
    let ours = match part {
        "ffn_norm" => "post_attention_layernorm",
        _ => BLOCK.iter().find(|(_, theirs)| *theirs == part)?.0,
    };
    Some(format!("model.layers.{layer}.{ours}.weight"))
}

/// Dimensions in ggml's order (row length first) of a parameter of this shape. A depthwise kernel
/// loses the dimension of its single input channel.
pub fn gguf_dims(shape: &[usize]) -> Vec<u64> {
    let dims = shape.iter().rev().map(|&dim| dim as u64);
    match shape {
        [_, 1, _] => dims.enumerate().filter(|(at, _)| *at != 1).map(|(_, dim)| dim).collect(),
        _ => dims.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_has_a_name() {
        let name = |name| gguf_name(Family::Llama, name);
        assert_eq!(name("model.layers.7.mlp.up_proj.weight").unwrap(), "blk.7.ffn_up.weight");
        assert_eq!(name("model.layers.7.self_attn.q_proj.bias").unwrap(), "blk.7.attn_q.bias");
        assert_eq!(name("lm_head.weight").unwrap(), "output.weight");
        for ours in ["model.layers.7.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"] {
            assert_eq!(hugging_face_name(&name(ours).unwrap()).unwrap(), ours);
        }
        assert_eq!(hugging_face_name("blk.7.attn_q.bias"), None);
        assert_eq!(name("model.layers.7.mlp.up_proj.scale"), None);
        assert_eq!(name("model.layers.7.other.weight"), None);
        let norm = "model.layers.0.post_attention_layernorm.weight";
        assert_eq!(name(norm).unwrap(), "blk.0.ffn_norm.weight");
        assert_eq!(gguf_name(Family::Gemma2, norm).unwrap(), "blk.0.post_attention_norm.weight");
    }

    #[test]
    fn a_kernel_loses_its_one_channel() {
        assert_eq!(gguf_dims(&[96, 1, 4]), [4, 96]);
        assert_eq!(gguf_dims(&[3, 2]), [2, 3]);
    }
}
