//! What llama.cpp calls the parameters, and how its `llama` files order the rows of q and k.

use super::{DecoderConfig, Family};

/// llama.cpp's name of a parameter (without `.weight`, `model.layers.N.` and `blk.N.`) for each of ours.
const BLOCK: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// llama.cpp's name of the parameter with this Hugging Face name, if it has one.
pub fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let part = part.strip_suffix(".weight")?;
    let (_, theirs) = BLOCK.iter().find(|(ours, _)| *ours == part)?;
    Some(format!("blk.{layer}.{theirs}.weight"))
}

/// The inverse of [`gguf_name`].
pub fn hugging_face_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let part = part.strip_suffix(".weight")?;
    let (ours, _) = BLOCK.iter().find(|(_, theirs)| *theirs == part)?;
    Some(format!("model.layers.{layer}.{ours}.weight"))
}

/// Number of heads whose rows are ordered otherwise in a GGUF, for the parameters where that is so.
///
/// Hugging Face rotates dimension j of a head with j + half; llama.cpp's `llama` graph rotates 2j with 2j + 1.
pub fn interleaved_heads(config: &DecoderConfig, name: &str) -> Option<usize> {
    match (config.family, rotated(name)?) {
        (Family::Llama, Rotated::Query) => Some(config.heads),
        (Family::Llama, Rotated::Key) => Some(config.kv_heads),
        _ => None,
    }
}

/// Parameters whose rows rotary positions turn in pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotated {
    /// `q_proj`
    Query,
    /// `k_proj`
    Key,
}

/// Whether the parameter with this Hugging Face name is one of them.
pub fn rotated(name: &str) -> Option<Rotated> {
    match name {
        _ if name.ends_with(".self_attn.q_proj.weight") => Some(Rotated::Query),
        _ if name.ends_with(".self_attn.k_proj.weight") => Some(Rotated::Key),
        _ => None,
    }
}

/// Rows `[heads * head_dim, width]` from Hugging Face's order to llama.cpp's.
pub fn interleave(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    reorder(values, heads, head_dim, |row| (row % 2) * (head_dim / 2) + row / 2)
}

/// The inverse of [`interleave`].
pub fn deinterleave(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    reorder(values, heads, head_dim, |row| (row % (head_dim / 2)) * 2 + row / (head_dim / 2))
}

/// Row r of each head becomes what row `from(r)` was.
fn reorder(values: &[f32], heads: usize, head_dim: usize, from: impl Fn(usize) -> usize) -> Vec<f32> {
    let width = values.len() / (heads * head_dim);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        for row in 0..head_dim {
            out.extend_from_slice(&head[from(row) * width..][..width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_interleaved_and_back() {
        // Two heads of width 4, one column: rows named head * 10 + row.
        let rows = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];
        let interleaved = interleave(&rows, 2, 4);
        assert_eq!(interleaved, [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0]);
        assert_eq!(deinterleave(&interleaved, 2, 4), rows);
    }

    #[test]
    fn every_parameter_has_a_name() {
        assert_eq!(gguf_name("model.layers.7.mlp.up_proj.weight").unwrap(), "blk.7.ffn_up.weight");
        assert_eq!(gguf_name("lm_head.weight").unwrap(), "output.weight");
        for name in ["model.layers.7.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"] {
            assert_eq!(hugging_face_name(&gguf_name(name).unwrap()).unwrap(), name);
        }
        assert_eq!(hugging_face_name("blk.7.attn_q.bias"), None);
        assert_eq!(gguf_name("model.layers.7.mlp.up_proj.bias"), None);
        assert_eq!(gguf_name("model.layers.7.other.weight"), None);
    }
}
