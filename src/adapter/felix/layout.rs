//! The tensors of a Felix spoke, checked against its shape and the post before any weight is read.

use std::collections::BTreeMap;

use super::names::{Naming, Role};
use crate::adapter::container::{Container, StoredTensor};
use crate::adapter::keys::bad;
use crate::adapter::{Defect, Limits, Post, Refusal};
use crate::gguf::Rule;

/// The shape of a spoke, as its file records it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::adapter) struct Shape {
    /// Number S of bottlenecks in a layer.
    pub spokes: u32,
    /// Rank r of each.
    pub rank: u32,
    /// Number of blocks from one spoke layer to the next, if recorded.
    pub every: Option<u32>,
    /// Epsilon of the norm, if recorded.
    pub eps: Option<f32>,
}

impl Shape {
    /// Checks the numbers.
    ///
    /// # Errors
    /// No bottleneck, no rank, or more than the limit; an epsilon that is no small positive number.
    pub fn check(&self, limits: &Limits) -> Result<(), Defect> {
        let together = u64::from(self.spokes) * u64::from(self.rank);
        if !(1..=limits.max_rank).contains(&together) {
            let what = format!("a layer of {} bottlenecks of rank {}", self.spokes, self.rank);
            return Err(Defect::RankLimit { what, found: together, limit: limits.max_rank });
        }
        if self.every == Some(0) {
            return Err(bad("spoke_every_n", 0, "1 or more").into());
        }
        match self.eps {
            Some(eps) if !(eps > 0.0 && eps < 1.0) => {
                Err(bad("rms_eps", eps, "a number between 0 and 1").into())
            }
            _ => Ok(()),
        }
    }

    /// S r, the ranks of all bottlenecks together.
    pub fn together(&self) -> u64 {
        u64::from(self.spokes) * u64::from(self.rank)
    }
}

/// One layer's tensors.
#[derive(Debug, Clone)]
pub(in crate::adapter) struct LayerTensors {
    pub norm: Option<StoredTensor>,
    pub gate: StoredTensor,
    pub down: Matrix,
    pub up: Matrix,
}

/// A matrix in one tensor or in S tensors.
#[derive(Debug, Clone)]
pub(in crate::adapter) enum Matrix {
    Fused(StoredTensor),
    Parts(Vec<StoredTensor>),
}

impl Matrix {
    /// Its tensors.
    pub fn tensors(&self) -> &[StoredTensor] {
        match self {
            Self::Fused(one) => std::slice::from_ref(one),
            Self::Parts(parts) => parts,
        }
    }
}

/// A spoke's tensors, by layer.
#[derive(Debug, Clone)]
pub(in crate::adapter) struct Layout {
    pub shape: Shape,
    /// Width d of the residual stream.
    pub hidden: u64,
    pub layers: BTreeMap<u32, LayerTensors>,
}

impl Layout {
    /// Groups a file's tensors by layer and checks that each layer is complete.
    ///
    /// `roles` has every tensor with its layer and role. Dimensions are ggml's: W_down `[d, S r]`,
    /// W_up `[S r, d]`.
    ///
    /// # Errors
    /// No layers; a tensor that is missing, extra or of other dimensions; layers that the post does
    /// not have.
    pub fn new(
        container: &Container,
        naming: Naming,
        roles: Vec<(u32, Role, StoredTensor)>,
        shape: Shape,
        post: Option<&Post>,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        Self::build(naming, roles, shape, post, limits).map_err(|reason| container.refuse(reason))
    }

    fn build(
        naming: Naming,
        roles: Vec<(u32, Role, StoredTensor)>,
        shape: Shape,
        post: Option<&Post>,
        limits: &Limits,
    ) -> Result<Self, Defect> {
        shape.check(limits)?;
        let mut by_layer: BTreeMap<u32, BTreeMap<Role, StoredTensor>> = BTreeMap::new();
        for (layer, role, stored) in roles {
            by_layer.entry(layer).or_default().insert(role, stored);
        }
        check_layers(naming, &by_layer, shape, post)?;
        let down = |roles: &BTreeMap<Role, StoredTensor>| {
            let mut found = roles.iter().filter(|(role, _)| matches!(role, Role::DownFused | Role::Down(_)));
            found.next().map(|(_, stored)| stored.dims[0])
        };
        // Without a post, the first matrix sets the expected width.
        let hidden = match post {
            Some(post) => post.hidden_size,
            None => by_layer.values().find_map(down).unwrap_or_default(),
        };
        let mut layers = BTreeMap::new();
        for (layer, roles) in by_layer {
            layers.insert(layer, layer_tensors(naming, layer, roles, shape, hidden)?);
        }
        Ok(Self { shape, hidden, layers })
    }

    /// Bytes of the weights as the engine holds them: f16 matrices, f32 norms.
    pub fn resident_bytes(&self) -> u64 {
        let matrices = self.hidden.saturating_mul(self.shape.together()).saturating_mul(2 * 2);
        let norm =
            |layer: &LayerTensors| if layer.norm.is_some() { self.hidden.saturating_mul(4) } else { 0 };
        let bytes = self.layers.values().map(|layer| matrices.saturating_add(norm(layer)));
        bytes.fold(0, u64::saturating_add)
    }
}

/// Compares the layers of the file with the expected ones.
fn check_layers<T>(
    naming: Naming,
    found: &BTreeMap<u32, T>,
    shape: Shape,
    post: Option<&Post>,
) -> Result<(), Defect> {
    let Some((&last, _)) = found.last_key_value() else { return Err(Defect::NoLayers) };
    if let Some(post) = post.filter(|post| last >= post.layers) {
        return Err(Defect::UnknownLayer { found: last, layers: post.layers });
    }
    let Some(every) = shape.every else { return Ok(()) };
    let end = post.map_or(last, |post| post.layers - 1);
    if let Some(layer) = (0..=end).step_by(every as usize).find(|layer| !found.contains_key(layer)) {
        let tensor = naming.name(layer, Role::Gate);
        return Err(Rule::MissingTensor { tensor, expected: vec![1] }.into());
    }
    match found.keys().find(|&layer| !layer.is_multiple_of(every)) {
        Some(layer) => {
            Err(bad("spoke_every_n", every, format!("a divisor of {layer}, which has a spoke")).into())
        }
        None => Ok(()),
    }
}

fn layer_tensors(
    naming: Naming,
    layer: u32,
    mut roles: BTreeMap<Role, StoredTensor>,
    shape: Shape,
    hidden: u64,
) -> Result<LayerTensors, Defect> {
    let rank = u64::from(shape.rank);
    let mut take = |role: Role, expected: [u64; 2]| match roles.remove(&role) {
        None => Ok(None),
        Some(stored) if stored.dims == [expected[0], expected[1], 1, 1] => Ok(Some(stored)),
        Some(stored) => {
            let (tensor, found) = (stored.name, stored.dims.to_vec());
            Err(Defect::Dimensions { tensor, found, expected: vec![expected[0], expected[1], 1, 1] })
        }
    };
    let missing = |role: Role, expected: &[u64]| {
        let (tensor, expected) = (naming.name(layer, role), expected.to_vec());
        Defect::from(Rule::MissingTensor { tensor, expected })
    };
    let norm = take(Role::Norm, [hidden, 1])?;
    let gate = take(Role::Gate, [1, 1])?.ok_or_else(|| missing(Role::Gate, &[1]))?;
    let mut matrix = |fused: Role, part: fn(u32) -> Role, dims: fn(u64, u64) -> [u64; 2]| {
        if let Some(stored) = take(fused, dims(hidden, shape.together()))? {
            return Ok(Matrix::Fused(stored));
        }
        let one = |s: u32| {
            let expected = dims(hidden, rank);
            take(part(s), expected)?.ok_or_else(|| missing(part(s), &expected))
        };
        (0..shape.spokes).map(one).collect::<Result<_, Defect>>().map(Matrix::Parts)
    };
    let down = matrix(Role::DownFused, Role::Down, |hidden, rank| [hidden, rank])?;
    let up = matrix(Role::UpFused, Role::Up, |hidden, rank| [rank, hidden])?;
    match roles.into_values().next() {
        // A bottleneck number from S on, or parts in addition to the fused matrix.
        Some(stored) => Err(Defect::UnexpectedTensor { tensor: stored.name }),
        None => Ok(LayerTensors { norm, gate, down, up }),
    }
}
