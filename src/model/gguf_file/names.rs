//! What llama.cpp calls the parameters, and the dimensions that they have in its files.

use crate::model::spec::{NormAt, Part, Role};
use crate::model::{BlockSpec, DecoderConfig, Family, Projection};

/// llama.cpp's name of each part of a block (without `blk.N.`), but for biases, and for norms that families name otherwise.
const PARTS: [(Part, &str); 22] = [
    (Part::Norm(NormAt::BeforeMixer), "attn_norm.weight"),
    (Part::Weight(Projection::Query), "attn_q.weight"),
    (Part::Weight(Projection::Key), "attn_k.weight"),
    (Part::Weight(Projection::Value), "attn_v.weight"),
    (Part::Weight(Projection::Output), "attn_output.weight"),
    (Part::Norm(NormAt::Query), "attn_q_norm.weight"),
    (Part::Norm(NormAt::Key), "attn_k_norm.weight"),
    (Part::Weight(Projection::DeltaMixed), "attn_qkv.weight"),
    (Part::Weight(Projection::DeltaGate), "attn_gate.weight"),
    (Part::Weight(Projection::DeltaTime), "ssm_alpha.weight"),
    (Part::Weight(Projection::DeltaStrength), "ssm_beta.weight"),
    (Part::Convolution, "ssm_conv1d.weight"),
    (Part::DecayRate, "ssm_a"),
    (Part::TimeBias, "ssm_dt.bias"),
    (Part::Norm(NormAt::DeltaRead), "ssm_norm.weight"),
    (Part::Weight(Projection::DeltaOutput), "ssm_out.weight"),
    (Part::Norm(NormAt::AfterMixer), "post_attention_norm.weight"),
    (Part::Norm(NormAt::BeforeFfn), "ffn_norm.weight"),
    (Part::Norm(NormAt::AfterFfn), "post_ffw_norm.weight"),
    (Part::Weight(Projection::Gate), "ffn_gate.weight"),
    (Part::Weight(Projection::Up), "ffn_up.weight"),
    (Part::Weight(Projection::Down), "ffn_down.weight"),
];

/// What is outside the blocks.
const OUTER: [(Role, &str); 3] = [
    (Role::Embedding, "token_embd.weight"),
    (Role::FinalNorm, "output_norm.weight"),
    (Role::Head, "output.weight"),
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

/// llama.cpp's graph of a Llama whose blocks may each have another number of heads and another feed-forward width. Its graph
/// of `llama` reads these of the first block.
const LLAMA_PER_BLOCK: &str = "deci";

/// llama.cpp's name of the architecture that computes a decoder.
pub fn architecture_of(config: &DecoderConfig) -> &'static str {
    let sizes = |block: &BlockSpec| (block.attention().map(|a| (a.heads, a.kv_heads)), block.ffn.width);
    let alike = config.blocks.windows(2).all(|pair| sizes(&pair[0]) == sizes(&pair[1]));
    if config.family == Family::Llama && !alike { LLAMA_PER_BLOCK } else { architecture(config.family) }
}

/// The family that llama.cpp's architecture of this name computes.
pub fn family_of(architecture_name: &str) -> Option<Family> {
    if architecture_name == LLAMA_PER_BLOCK {
        return Some(Family::Llama);
    }
    Family::ALL.into_iter().find(|family| architecture(*family) == architecture_name)
}

/// Whether llama.cpp reads numbers of heads and feed-forward widths for each block of an architecture.
pub fn is_per_block(architecture: &str) -> bool {
    architecture == LLAMA_PER_BLOCK
}

/// llama.cpp's name of a decoder's parameter; none for what is no part of a decoder.
pub fn gguf_name(family: Family, role: Role) -> Option<String> {
    if let Some((_, name)) = OUTER.iter().find(|(outer, _)| *outer == role) {
        return Some((*name).to_owned());
    }
    let Role::Block { layer, part } = role else { return None };
    let name = |part: Part| PARTS.iter().find(|(known, _)| *known == part).map(|(_, name)| *name);
    let within = match part {
        // Qwen 3.5 calls it by its place after attention, as Hugging Face does.
        Part::Norm(NormAt::BeforeFfn) if family == Family::Qwen3_5 => {
            name(Part::Norm(NormAt::AfterMixer))?.to_owned()
        }
        Part::Bias(projection) => {
            format!("{}.bias", name(Part::Weight(projection))?.strip_suffix(".weight")?)
        }
        part => name(part)?.to_owned(),
    };
    Some(format!("blk.{layer}.{within}"))
}

/// The inverse of [`gguf_name`] for what is called `.weight`, by names that all families share.
pub fn role_of(name: &str) -> Option<Role> {
    if let Some((role, _)) = OUTER.iter().find(|(_, outer)| *outer == name) {
        return Some(*role);
    }
    let (layer, within) = name.strip_prefix("blk.")?.split_once('.')?;
    let named = |(_, known): &&(Part, &str)| *known == within && known.ends_with(".weight");
    let part = PARTS.iter().find(named).map(|(part, _)| *part)?;
    // After attention, or before the feed-forward part: that depends on the family.
    let ambiguous = part == Part::Norm(NormAt::AfterMixer);
    Some(Role::Block { layer: layer.parse::<u32>().ok()? as usize, part }).filter(|_| !ambiguous)
}

/// Dimensions in ggml's order (row length first) of a parameter of this shape. A depthwise kernel has no dimension for its
/// one input channel.
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
    use crate::model::Uniform;

    #[test]
    fn every_parameter_has_a_name() {
        for family in Family::ALL {
            for parameter in (Uniform { family, layers: 4, ..Uniform::small() }).config().parameters() {
                assert!(gguf_name(family, parameter.role).is_some(), "{family:?}: {}", parameter.name);
            }
        }
        let name = |name| gguf_name(Family::Llama, Role::of(name)?);
        assert_eq!(name("model.layers.7.mlp.up_proj.weight").unwrap(), "blk.7.ffn_up.weight");
        assert_eq!(name("model.layers.7.self_attn.q_proj.bias").unwrap(), "blk.7.attn_q.bias");
        assert_eq!(name("lm_head.weight").unwrap(), "output.weight");
        for ours in ["model.layers.7.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"] {
            assert_eq!(role_of(&name(ours).unwrap()).unwrap().name(false), ours);
        }
        assert_eq!(role_of("blk.7.attn_q.bias"), None);
        assert_eq!(name("model.layers.7.mlp.up_proj.scale"), None);
        assert_eq!(name("model.layers.7.other.weight"), None);
        assert_eq!(name("model.layers.0.post_attention_layernorm.weight").unwrap(), "blk.0.ffn_norm.weight");
        let norm = |family, at| gguf_name(family, Role::Block { layer: 0, part: Part::Norm(at) }).unwrap();
        assert_eq!(norm(Family::Gemma2, NormAt::AfterMixer), "blk.0.post_attention_norm.weight");
        assert_eq!(norm(Family::Qwen3_5, NormAt::BeforeFfn), "blk.0.post_attention_norm.weight");
    }

    #[test]
    fn a_kernel_loses_its_one_channel() {
        assert_eq!(gguf_dims(&[96, 1, 4]), [4, 96]);
        assert_eq!(gguf_dims(&[3, 2]), [2, 3]);
    }
}
