//! Post and Felix spoke in one GGUF file, parted: llama.cpp refuses the spoke's tensors in a model.

use std::path::Path;

use super::felix::to_gguf;
use crate::adapter::container::{Container, StoredTensor};
use crate::adapter::felix::layout::{Layout, Shape};
use crate::adapter::felix::names::Naming;
use crate::adapter::felix::weights;
use crate::adapter::keys::Origin;
use crate::adapter::{Defect, Limits, Post, Refusal, Spoke, inspect};
use crate::gguf::{Gguf, GgufError, Rule, Writer};

/// What came out of a merged file.
#[derive(Debug)]
pub struct Split {
    /// The post.
    pub post: Post,
    /// The spoke, which names that post.
    pub spoke: Spoke,
}

/// Writes post and spoke of a merged file, each a file of its own. The spoke names the post by its content.
///
/// Both the fused tensors and the older ones, one pair for each bottleneck, are read.
///
/// # Errors
/// A file without a spoke in it; a spoke that is not whole; a rest that is no model; the disk. Nothing is left behind.
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
    // Judged before anything is written, and once more when the post is known.
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
        // The runtime of such files takes the epsilon of the post.
        to_gguf(&container, &layout, post.rms_eps, &origin, Some(&post), source, spoke_target)?;
        let spoke = inspect(spoke_target, Some(&post), limits)?;
        Ok(Split { post, spoke })
    };
    spoke().inspect_err(|_| {
        // A post without its spoke would look like a success.
        let _ = std::fs::remove_file(post_target);
    })
}

/// Writes every key and tensor that is not the spoke's, as it is.
fn write_post(file: &Gguf, spoke_keys: &[String], target: &Path) -> Result<(), Refusal> {
    let mut writer = Writer::new();
    for (key, value) in file.metadata() {
        // The writer has an alignment of its own.
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
