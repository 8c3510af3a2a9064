//! Names of PEFT's tensors, and the tensors that they change in posts of the dense families.

use crate::adapter::lora::{EMBEDDING, Side};
use crate::adapter::{Defect, Post};
use crate::model::gguf_file::names::{gguf_name, role_of};
use crate::model::{Family, Role};

/// Prefix of a module's name in a saved adapter.
const PREFIX: &str = "base_model.model.";

/// A tensor of PEFT, identified by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::adapter) struct Module {
    /// The module's name in the Hugging Face model.
    pub module: String,
    /// llama.cpp's name of the tensor that it changes.
    pub target: String,
    pub side: Side,
}

/// Checks that tensor names and row orders of this post's architecture are known.
///
/// # Errors
/// An architecture whose linear layers differ in names or row order from the dense families.
pub(in crate::adapter) fn check_family(post: &Post) -> Result<(), Defect> {
    match post.architecture.as_str() {
        "llama" | "deci" | "qwen2" | "qwen3" | "gemma2" | "qwen35" => Ok(()),
        other => Err(Defect::Unsupported {
            code: "peft_architecture",
            what: format!("the post is a {other:?}"),
            why: "has names of modules that are not known here",
            hint: "convert it with llama.cpp's convert_lora_to_gguf.py",
        }),
    }
}

/// Parses a tensor's name into module, target and side.
///
/// # Errors
/// A tensor that is neither A nor B, by kind; a module that no post of the family has.
pub(in crate::adapter) fn read(name: &str) -> Result<Module, Defect> {
    let unsupported = |code, why, hint| Defect::Unsupported {
        code,
        what: format!("there is a tensor {name:?}"),
        why,
        hint,
    };
    let ends = [
        (".lora_A.weight", Side::A, false),
        (".lora_B.weight", Side::B, false),
        (".lora_embedding_A", Side::A, true),
        (".lora_embedding_B", Side::B, true),
    ];
    let found =
        ends.into_iter().find_map(|(end, side, embedding)| Some((name.strip_suffix(end)?, side, embedding)));
    let Some((module, side, embedding)) = found else {
        return Err(if name.contains("lora_magnitude_vector") {
            unsupported(
                "dora",
                "is a magnitude of DoRA",
                "train with use_dora=False, or merge it into the model",
            )
        } else if name.rsplit('.').next() == Some("bias") {
            unsupported("bias", "is a bias, which no runtime of LoRA computes", "train with bias=\"none\"")
        } else {
            unsupported(
                "modules_to_save",
                "is a whole parameter of the post and not a change of one",
                "train without modules_to_save, and save with save_embedding_layers=False",
            )
        });
    };
    let unknown = || Defect::UnknownTarget { tensor: name.to_owned(), target: module.to_owned() };
    let module = module.strip_prefix(PREFIX).ok_or_else(unknown)?;
    // The linear layers of all known families share their names.
    let target = Role::of(&format!("{module}.weight")).and_then(|role| gguf_name(Family::Llama, role));
    let target = target.filter(|target| embedding == (target == EMBEDDING)).ok_or_else(unknown)?;
    Ok(Module { module: module.to_owned(), target, side })
}

/// PEFT's tensor name for a change of llama.cpp's tensor `target`, if the family has it.
pub(in crate::adapter) fn write(target: &str, side: Side) -> Option<String> {
    let parameter = role_of(target)?.name(false);
    let module = parameter.strip_suffix(".weight")?;
    let end = match (target == EMBEDDING, side) {
        (false, Side::A) => ".lora_A.weight",
        (false, Side::B) => ".lora_B.weight",
        (true, Side::A) => ".lora_embedding_A",
        (true, Side::B) => ".lora_embedding_B",
    };
    Some(format!("{PREFIX}{module}{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for target in ["blk.3.attn_q.weight", "blk.0.ffn_down.weight", "output.weight", EMBEDDING] {
            for side in [Side::A, Side::B] {
                let module = read(&write(target, side).unwrap()).unwrap();
                assert_eq!((module.target.as_str(), module.side), (target, side));
            }
        }
        let module = read("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight").unwrap();
        assert_eq!(module.module, "model.layers.3.self_attn.q_proj");
    }

    #[test]
    fn what_is_no_pair_is_refused_by_what_it_is() {
        let cases = [
            ("base_model.model.lm_head.weight", "modules_to_save"),
            ("base_model.model.model.layers.0.self_attn.q_proj.bias", "bias"),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "dora"),
            ("model.layers.0.self_attn.q_proj.lora_A.weight", "unknown_target"),
            ("base_model.model.model.layers.0.self_attn.other.lora_A.weight", "unknown_target"),
            ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "unknown_target"),
            ("base_model.model.model.embed_tokens.lora_A.weight", "unknown_target"),
            ("base_model.model.lm_head.lora_embedding_A", "unknown_target"),
        ];
        for (name, code) in cases {
            assert_eq!(read(name).unwrap_err().code(), code, "{name}");
        }
    }
}
