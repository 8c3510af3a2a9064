//! Reads Felix spokes from files: this program's GGUF, and safetensors with training's tensor
//! names.

use super::layout::{Layout, Shape};
use super::names::{Naming, Role};
use super::weights;
use crate::adapter::container::{Container, StoredTensor};
use crate::adapter::dropped::Json;
use crate::adapter::keys::{self, Origin};
use crate::adapter::metadata::Metadata;
use crate::adapter::{Adapter, Defect, FelixFacts, Format, Limits, Post, Refusal, Spoke};
use crate::gguf::{GgmlType, Gguf, Rule};

/// The tensors of this program's GGUF, checked against the post.
///
/// # Errors
/// As [`Layout::new`]; keys that are missing or wrong.
pub(in crate::adapter) fn gguf_layout(
    container: &Container,
    file: &Gguf,
    post: Option<&Post>,
    limits: &Limits,
) -> Result<Layout, Refusal> {
    let shape = Shape {
        spokes: file.get(keys::SPOKES)?,
        rank: file.get(keys::RANK)?,
        every: None,
        eps: file.find(keys::EPS)?,
    };
    keys::check_tokens(file, post)?;
    let tensors = container.tensors(limits)?;
    // The engine reads vectors without conversion.
    if let Some(vector) = tensors.iter().find(|t| t.kind != GgmlType::F32 && is_vector(&t.name)) {
        let (tensor, found) = (vector.name.clone(), vector.kind);
        return Err(container.refuse(Rule::TensorType { tensor, found, expected: "F32" }));
    }
    Layout::new(container, Naming::Gguf, roles(container, tensors, Naming::Gguf)?, shape, post, limits)
}

fn is_vector(name: &str) -> bool {
    matches!(Naming::Gguf.read(name), Some((_, Role::Gate | Role::Norm)))
}

/// Every tensor with its layer and role.
fn roles(
    container: &Container,
    tensors: Vec<StoredTensor>,
    naming: Naming,
) -> Result<Vec<(u32, Role, StoredTensor)>, Refusal> {
    let one = |stored: StoredTensor| match naming.read(&stored.name) {
        Some((layer, role)) => Ok((layer, role, stored)),
        None => Err(container.refuse(Defect::UnexpectedTensor { tensor: stored.name })),
    };
    tensors.into_iter().map(one).collect()
}

/// The tensors of a safetensors file with training's names, and the recorded origin.
///
/// # Errors
/// As [`Layout::new`]; a configuration that is missing or wrong.
pub(in crate::adapter) fn safetensors_layout(
    container: &Container,
    config: Option<&Json>,
    post: Option<&Post>,
    limits: &Limits,
) -> Result<(Layout, Origin), Refusal> {
    let config = Metadata::new(container, config);
    let shape = Shape {
        spokes: config.needed("num_spokes")?,
        rank: config.needed("spoke_rank")?,
        every: config.count("spoke_every_n")?,
        eps: config.number("rms_eps")?,
    };
    let origin = config.origin()?;
    origin.check(post).map_err(|reason| container.refuse(reason))?;
    let roles = roles(container, container.tensors(limits)?, Naming::Trained)?;
    Ok((Layout::new(container, Naming::Trained, roles, shape, post, limits)?, origin))
}

/// Inspects a Felix spoke in either form.
pub(in crate::adapter) fn inspect(
    container: &Container,
    format: Format,
    layout: &Layout,
    origin: Origin,
    limits: &Limits,
) -> Result<Spoke, Refusal> {
    let resident_bytes = layout.resident_bytes();
    if resident_bytes > limits.max_resident_bytes {
        let (found, limit) = (resident_bytes, limits.max_resident_bytes);
        return Err(container.refuse(Defect::Resident { found, limit }));
    }
    let norms = weights::weigh(container, layout)?;
    let Shape { spokes, rank, eps, .. } = layout.shape;
    let learned_norm = layout.layers.values().any(|layer| layer.norm.is_some());
    let adapter = Adapter::Felix(FelixFacts { spokes, rank, eps, learned_norm });
    let layers = layout.layers.keys().copied().collect();
    Ok(origin.into_spoke(format, adapter, layers, resident_bytes, norms))
}
