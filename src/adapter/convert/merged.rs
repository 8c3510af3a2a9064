//! Splits a GGUF file that holds a post and a Felix spoke. llama.cpp refuses a model with a spoke's
//! tensors.

use std::path::Path;

use super::felix::to_gguf;
use crate::adapter::container::{Container, StoredTensor};
use crate::adapter::felix::layout::{Layout, Shape};
use crate::adapter::felix::names::Naming;
use crate::adapter::felix::weights;
use crate::adapter::keys::Origin;
use crate::adapter::{Defect, Limits, Post, Refusal, Spoke, inspect};
use crate::gguf::{Gguf, GgufError, Rule, Writer};

/// The two files of a split.
#[derive(Debug)]
pub struct Split {
    /// The post.
    pub post: Post,
    /// The spoke, which names the post.
    pub spoke: Spoke,
}

/// Splits a merged file into a post and a spoke. The spoke names the post by its content hash.
///
/// Reads both the fused tensors and the older form, one pair for each bottleneck.
///
/// # Errors The file holds no spoke; the spoke is incomplete; the rest is no model; an I/O error. A
/// failure leaves no file.
pub fn split(
    source: &Path,
    post_target: &Path,
    spoke_target: &Path,
    limits: &Limits,
) -> Result<Split, Refusal> {
    let file = Gguf::open(source)?;
    let container = Container::Gguf(&file);
    let architecture: &str = file.get("general.architecture")?;
    let keys = [format!("{architecture}.num_spokes"), format!("{architecture}.spoke_rank")];
    let missing = |error: GgufError| match error.rule {
        Rule::MissingKey { .. } => container.refuse(Defect::NotMerged { key: keys[0].clone() }),
        rule => container.refuse(rule),
    };
    let shape = Shape {
        spokes: file.get(&keys[0]).map_err(missing)?,
        rank: file.get(&keys[1]).map_err(missing)?,
        every: None,
        eps: None,
    };
    let mut roles = Vec::new();
    for info in file.tensors() {
        if let Some((layer, role)) = Naming::Gguf.read(&info.name) {
            roles.push((layer, role, StoredTensor::of(info).map_err(|reason| container.refuse(reason))?));
        }
    }
    // The spoke is checked before anything is written, and again when the post is known.
    let layout = Layout::new(&container, Naming::Gguf, roles.clone(), shape, None, limits)?;
    weights::weigh(&container, &layout)?;
    write_post(&file, &keys, post_target)?;
    let spoke = || {
        let post = Post::open(post_target)?;
        let layout = Layout::new(&container, Naming::Gguf, roles, shape, Some(&post), limits)?;
        let origin = Origin {
            architecture: Some(post.architecture.clone()),
            post: Some(post.identity()),
            tokenizer: Some(post.tokenizer),
            ..Origin::default()
        };
        // The runtime that serves merged files uses the post's epsilon.
        to_gguf(&container, &layout, post.rms_eps, &origin, Some(&post), source, spoke_target)?;
        let spoke = inspect(spoke_target, Some(&post), limits)?;
        Ok(Split { post, spoke })
    };
    spoke().inspect_err(|_| {
        // A post without its spoke would look like a success.
        let _ = std::fs::remove_file(post_target);
    })
}

/// Writes every key and tensor that is not part of the spoke, unchanged.
fn write_post(file: &Gguf, spoke_keys: &[String], target: &Path) -> Result<(), Refusal> {
    let mut writer = Writer::new();
    for (key, value) in file.metadata() {
        // The writer sets its own alignment.
        if !spoke_keys.contains(key) && key != "general.alignment" {
            writer.set(key.clone(), value.clone());
        }
    }
    let tensors: Vec<_> =
        file.tensors().iter().filter(|info| Naming::Gguf.read(&info.name).is_none()).collect();
    for info in &tensors {
        writer.tensor(info.name.clone(), &info.dims, info.kind);
    }
    let mut tensors = tensors.into_iter();
    writer.write(target, |_| {
        let info = tensors.next().expect("each tensor was announced in this order");
        Ok::<_, Refusal>(file.tensor_bytes(info)?)
    })
}
