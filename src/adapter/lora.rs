//! LoRA: pairs of matrices and the tensors that they change; inspects llama.cpp's LoRA files.

use std::collections::{BTreeMap, BTreeSet};

use super::container::{Container, StoredTensor, four};
use super::keys::{self, Origin};
use super::{Adapter, Defect, Format, LayerNorms, Limits, LoraFacts, Post, Refusal, Spoke};
use crate::gguf::Gguf;

/// The embedding's name. llama.cpp expects its pair transposed, because rows of A are looked up.
pub(super) const EMBEDDING: &str = "token_embd.weight";

/// One of the two matrices of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Side {
    A,
    B,
}

/// One matrix, identified by its name.
#[derive(Debug, Clone)]
pub(super) struct Half {
    /// The tensor of the post that the matrix changes.
    pub target: String,
    pub side: Side,
    /// The tensor, with dimensions in llama.cpp's order.
    pub stored: StoredTensor,
}

/// Both matrices: `W + scale B A`.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// The tensor of the post that the pair changes.
    pub target: String,
    /// `[in, r]`; for the embedding `[r, vocabulary]`.
    pub a: StoredTensor,
    /// `[r, out]`.
    pub b: StoredTensor,
    pub rank: u64,
}

impl Pair {
    /// The block of the target, if it is in one.
    pub fn layer(&self) -> Option<u32> {
        layer_of(&self.target)
    }
}

/// The block of a tensor of the post.
pub(super) fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The matrices of llama.cpp's LoRA file.
///
/// # Errors
/// A tensor that is neither an A nor a B.
fn halves(container: &Container, limits: &Limits) -> Result<Vec<Half>, Refusal> {
    let half = |stored: StoredTensor| {
        let split = [(".lora_a", Side::A), (".lora_b", Side::B)]
            .into_iter()
            .find_map(|(end, side)| Some((stored.name.strip_suffix(end)?, side)));
        match split {
            // llama.cpp removes every ".lora_a" from a name, not only the last.
            Some((target, side)) if !target.contains(".lora_") => {
                Ok(Half { target: target.to_owned(), side, stored })
            }
            _ => Err(container.refuse(Defect::UnexpectedTensor { tensor: stored.name })),
        }
    };
    container.tensors(limits)?.into_iter().map(half).collect()
}

/// Combines A and B matrices into pairs, and checks them against the post.
///
/// # Errors
/// No matrices at all; a matrix without its partner; dimensions that don't match; a target that the
/// post lacks or that can't be changed; ranks above the limit.
pub(super) fn pair_up(
    container: &Container,
    halves: Vec<Half>,
    post: Option<&Post>,
    limits: &Limits,
) -> Result<Vec<Pair>, Refusal> {
    let refuse = |reason: Defect| container.refuse(reason);
    let mut found: BTreeMap<String, [Option<StoredTensor>; 2]> = BTreeMap::new();
    for Half { target, side, stored } in halves {
        found.entry(target).or_default()[side as usize] = Some(stored);
    }
    if found.is_empty() {
        return Err(refuse(Defect::NoPairs));
    }
    let mut pairs = Vec::new();
    for (target, sides) in found {
        let (a, b) = match sides {
            [Some(a), Some(b)] => (a, b),
            [Some(one), None] | [None, Some(one)] => {
                return Err(refuse(Defect::Unpaired { tensor: one.name, target }));
            }
            [None, None] => continue,
        };
        pairs.push(pair(target, a, b, post, limits).map_err(refuse)?);
    }
    Ok(pairs)
}

fn pair(
    target: String,
    a: StoredTensor,
    b: StoredTensor,
    post: Option<&Post>,
    limits: &Limits,
) -> Result<Pair, Defect> {
    for half in [&a, &b] {
        if let Some(&found) = half.dims[2..].iter().find(|&&dim| dim != 1) {
            return Err(Defect::Experts { tensor: half.name.clone(), found });
        }
    }
    let embedding = target == EMBEDDING;
    let a_rank = if embedding { a.dims[0] } else { a.dims[1] };
    let rank = b.dims[0];
    if rank != a_rank {
        return Err(Defect::RankMismatch { tensor: b.name, partner: a.name, found: rank, expected: a_rank });
    }
    if rank > limits.max_rank {
        let what = format!("tensor {:?}", a.name);
        return Err(Defect::RankLimit { what, found: rank, limit: limits.max_rank });
    }
    let Some(post) = post else { return Ok(Pair { target, a, b, rank }) };
    let Some(changed) = post.tensors.get(&target) else {
        return Err(Defect::UnknownTarget { tensor: a.name, target });
    };
    let dims = four(&changed.dims);
    if let Some(&found) = dims[2..].iter().find(|&&dim| dim != 1) {
        return Err(Defect::Experts { tensor: target, found });
    }
    if changed.dims.len() != 2 || !target.ends_with(".weight") {
        return Err(Defect::NotAMatrix { tensor: a.name, target, found: changed.dims.clone() });
    }
    if embedding && post.is_tied() {
        return Err(Defect::TiedEmbedding { tensor: a.name });
    }
    let [inputs, outputs, ..] = dims;
    let expected = if embedding {
        // Rows of A are looked up by token, so A has one row for each.
        [(&a, [rank, outputs]), (&b, [rank, inputs])]
    } else {
        [(&a, [inputs, rank]), (&b, [rank, outputs])]
    };
    for (half, expected) in expected {
        if half.dims[..2] != expected {
            let (tensor, found) = (half.name.clone(), half.dims[..2].to_vec());
            return Err(Defect::Dimensions { tensor, found, expected: expected.to_vec() });
        }
    }
    Ok(Pair { target, a, b, rank })
}

/// Reads every number of the pairs and computes norms by layer. `scale` returns the factor of B A.
///
/// # Errors
/// A number that is not finite; too many bytes of memory.
pub(super) fn weigh(
    container: &Container,
    pairs: &[Pair],
    limits: &Limits,
    scale: impl Fn(&Pair) -> f64,
) -> Result<(u64, Vec<LayerNorms>), Refusal> {
    let bytes =
        pairs.iter().try_fold(0u64, |sum, pair| sum.checked_add(pair.a.bytes)?.checked_add(pair.b.bytes));
    let bytes = bytes.unwrap_or(u64::MAX);
    if bytes > limits.max_resident_bytes {
        return Err(container.refuse(Defect::Resident { found: bytes, limit: limits.max_resident_bytes }));
    }
    let mut squares: BTreeMap<Option<u32>, (f64, f64)> = BTreeMap::new();
    for pair in pairs {
        let (down, up) = squares.entry(pair.layer()).or_default();
        *down += container.square_sum(&pair.a, f32::MAX)?;
        *up += container.square_sum(&pair.b, f32::MAX)? * scale(pair).powi(2);
    }
    let norm = |(layer, (down, up)): (_, (f64, f64))| LayerNorms { layer, down: down.sqrt(), up: up.sqrt() };
    Ok((bytes, squares.into_iter().map(norm).collect()))
}

/// Reads the pairs of llama.cpp's LoRA file, checked against the post, and alpha.
///
/// # Errors
/// As [`pair_up`]; an alpha that is no number.
pub(super) fn read(
    container: &Container,
    file: &Gguf,
    post: Option<&Post>,
    limits: &Limits,
) -> Result<(f32, Vec<Pair>), Refusal> {
    let alpha = keys::finite(file, keys::ALPHA)?;
    keys::check_tokens(file, post)?;
    Ok((alpha, pair_up(container, halves(container, limits)?, post, limits)?))
}

/// Inspects llama.cpp's LoRA file.
pub(super) fn inspect(
    container: &Container,
    file: &Gguf,
    origin: Origin,
    post: Option<&Post>,
    limits: &Limits,
) -> Result<Spoke, Refusal> {
    let (alpha, pairs) = read(container, file, post, limits)?;
    let (resident_bytes, norms) =
        weigh(container, &pairs, limits, |pair| f64::from(alpha) / pair.rank as f64)?;
    Ok(facts(Format::LoraGguf, alpha, &pairs, resident_bytes, norms, origin))
}

/// The facts of a LoRA. The caller, which opened the file, fills in `file_bytes`.
pub(super) fn facts(
    format: Format,
    alpha: f32,
    pairs: &[Pair],
    resident_bytes: u64,
    norms: Vec<LayerNorms>,
    origin: Origin,
) -> Spoke {
    let ranks: BTreeSet<u64> = pairs.iter().map(|pair| pair.rank).collect();
    let targets = pairs.iter().map(|pair| pair.target.clone()).collect();
    let layers = pairs.iter().filter_map(Pair::layer).collect();
    let adapter = Adapter::Lora(LoraFacts { alpha, ranks, targets });
    origin.into_spoke(format, adapter, layers, resident_bytes, norms)
}
