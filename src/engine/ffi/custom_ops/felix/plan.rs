//! Predicts which rows of a graph have which spoke, and compares the prediction with the graph.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::ops::Range;
use std::rc::Rc;

use llama_cpp_sys_2 as sys;

use super::{FelixError, Use};
use crate::engine::ffi::custom_ops::{is_host, size};

/// Which rows of the batch have which spoke.
#[derive(Debug, Default)]
pub struct Plan {
    pub(super) uses: Vec<Use>,
    /// The graphs in which the batch is computed; empty if no row has a spoke.
    pub(super) parts: Vec<Part>,
    /// Number of graphs that have begun.
    pub(super) begun: usize,
    fault: Option<FelixError>,
}

/// The rows of one graph.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Part {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    sequences: Vec<i32>,
    /// What the graph has shown about its rows.
    told: Told,
    /// For each row, the index of its spoke in the uses.
    pub(super) rows: Vec<Option<usize>>,
    /// The same for the rows whose logits are wanted. llama.cpp computes the last block only for
    /// them.
    pub(super) outputs: Vec<Option<usize>>,
    /// Blocks whose end was found.
    pub(super) seen: BTreeSet<u32>,
}

/// What a graph has shown about its rows, in addition to their tokens.
#[derive(Debug, Default, PartialEq)]
struct Told {
    positions: bool,
    sequences: bool,
}

/// A batch, as passed to llama.cpp.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Tokens.
    pub tokens: &'a [i32],
    /// The position of each token in its sequence.
    pub positions: &'a [i32],
    /// The sequence of each token.
    pub sequences: &'a [i32],
    /// Whether the logits of each token are wanted.
    pub logits: &'a [i8],
}

impl Plan {
    /// Sets the spokes of the next batches, at most one for each sequence.
    pub fn set(&mut self, uses: &[Use]) {
        self.parts.clear();
        self.uses = uses.to_vec();
    }

    /// Prepares for a batch.
    pub fn begin(&mut self, batch: Rows<'_>) {
        self.parts.clear();
        (self.begun, self.fault) = (0, None);
        let used = |sequence: &i32| self.uses.iter().position(|(id, ..)| id.cast_signed() == *sequence);
        let spokes: Vec<Option<usize>> = batch.sequences.iter().map(used).collect();
        if spokes.iter().all(Option::is_none) {
            return;
        }
        for places in divide(batch.sequences) {
            let mut part = Part::default();
            for place in places {
                part.tokens.push(batch.tokens[place]);
                part.positions.push(batch.positions[place]);
                part.sequences.push(batch.sequences[place]);
                part.rows.push(spokes[place]);
                if batch.logits[place] != 0 {
                    part.outputs.push(spokes[place]);
                }
            }
            self.parts.push(part);
        }
    }

    /// Checks a computed batch: each spoke must have acted after each of its blocks, on the rows of
    /// its own sequences.
    pub fn end(&self) -> Result<(), FelixError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.begun != self.parts.len() {
            return Err(FelixError::Order);
        }
        for part in &self.parts {
            if !part.told.sequences && part.has_alike(&self.uses) {
                return Err(FelixError::Alike);
            }
            let used: BTreeSet<usize> = part.rows.iter().flatten().copied().collect();
            let blocks = used.iter().flat_map(|&at| self.uses[at].1.layers.keys());
            if let Some(missed) = blocks.into_iter().find(|block| !part.seen.contains(block)) {
                return Err(FelixError::Block(*missed));
            }
        }
        Ok(())
    }

    /// Whether any node needs attention.
    pub fn acts(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Reads what a node shows about the rows of its graph. A graph begins with the node that turns
    /// tokens into rows; other nodes take the positions; and keys are stored in the cells of their
    /// sequences.
    pub fn see(&mut self, node: &sys::ggml_tensor) {
        // SAFETY: sources of a node live as long as the node.
        let (Some(first), Some(second)) = (unsafe { (node.src[0].as_ref(), node.src[1].as_ref()) }) else {
            return;
        };
        match node.op {
            sys::GGML_OP_GET_ROWS if name(first) == c"token_embd.weight" && name(second) == c"inp_tokens" => {
                self.begun += 1;
                self.compare(|part| Some(part.tokens == numbers::<i32>(second)?));
            }
            sys::GGML_OP_GET_ROWS | sys::GGML_OP_ROPE if name(second) == c"inp_pos" => self.compare(|part| {
                part.told.positions = true;
                // A position may have several numbers. The first numbers of all rows come first.
                Some(numbers::<i32>(second)?.get(..part.positions.len())? == part.positions)
            }),
            sys::GGML_OP_SET_ROWS => {
                // SAFETY: the source of a view lives as long as the view.
                let Some(keys) = (unsafe { node.view_src.as_ref() }) else { return };
                if !name(keys).to_bytes().starts_with(b"cache_k_l") {
                    return;
                }
                // `[width, cells, streams]`. Each sequence has the stream of the same number.
                let places = keys.ne[1].max(1);
                self.compare(|part| {
                    part.told.sequences = true;
                    let streams = numbers::<i64>(second)?.iter().map(|row| row / places);
                    Some(streams.eq(part.sequences.iter().copied().map(i64::from)))
                });
            }
            _ => {}
        }
    }

    /// Compares what the current graph shows with the prediction.
    fn compare(&mut self, is_same: impl FnOnce(&mut Part) -> Option<bool>) {
        if self.part().and_then(is_same) != Some(true) {
            self.fault = Some(FelixError::Order);
        }
    }

    /// The rows of the current graph.
    fn part(&mut self) -> Option<&mut Part> {
        self.parts.get_mut(self.begun.checked_sub(1)?)
    }
}

impl Part {
    /// Whether two sequences with different spokes are equal in all that the graph shows about
    /// rows, apart from their sequences.
    fn has_alike(&self, uses: &[Use]) -> bool {
        let mut sequences: Vec<Range<usize>> = Vec::new();
        for (row, sequence) in self.sequences.iter().enumerate() {
            match sequences.last_mut().filter(|rows| self.sequences[rows.start] == *sequence) {
                Some(rows) => rows.end = row + 1,
                None => sequences.push(row..row + 1),
            }
        }
        let said = |rows: &Range<usize>| {
            let positions = self.told.positions.then(|| &self.positions[rows.clone()]);
            (&self.tokens[rows.clone()], positions)
        };
        let mut pairs =
            sequences.iter().enumerate().flat_map(|(at, a)| sequences[..at].iter().map(move |b| (a, b)));
        let spoke = |rows: &Range<usize>| {
            self.rows[rows.start].map(|at| (Rc::as_ptr(&uses[at].1), uses[at].2.to_bits()))
        };
        pairs.any(|(a, b)| spoke(a) != spoke(b) && said(a) == said(b))
    }
}

/// An integer input of a graph; `None` if it can't be read here. llama.cpp sets inputs before it
/// asks for nodes.
fn numbers<T: Input>(tensor: &sys::ggml_tensor) -> Option<&[T]> {
    let is_read = tensor.type_ == T::TYPE && tensor.nb[0] == size_of::<T>() && is_host(tensor);
    // SAFETY: the tensor is in host memory and of this type, and its first dimension is contiguous.
    // Inputs are written only before nodes are asked for.
    is_read.then(|| unsafe { std::slice::from_raw_parts(tensor.data.cast::<T>(), size(tensor)[0]) })
}

/// Element types of inputs.
trait Input {
    const TYPE: sys::ggml_type;
}

impl Input for i32 {
    const TYPE: sys::ggml_type = sys::GGML_TYPE_I32;
}

impl Input for i64 {
    const TYPE: sys::ggml_type = sys::GGML_TYPE_I64;
}

/// Divides a batch like llama.cpp does if each sequence has its own stream of the cache
/// (`llama_batch_allocr::split_equal`, as every kind of memory calls it). A graph has sequences
/// with consecutive numbers in the order in which they appear, each with the same number of tokens,
/// one sequence after the other. Returns indices into the batch.
fn divide(sequences: &[i32]) -> Vec<Vec<usize>> {
    let mut left: Vec<usize> = (0..sequences.len()).collect();
    let mut done = vec![false; sequences.len()];
    let mut parts = Vec::new();
    while !left.is_empty() {
        let mut taken: Vec<i32> = Vec::new();
        for &place in &left {
            let sequence = sequences[place];
            if !taken.contains(&sequence) && taken.last().is_none_or(|last| last + 1 == sequence) {
                taken.push(sequence);
            }
        }
        let places = |sequence: i32| left.iter().copied().filter(move |&place| sequences[place] == sequence);
        let length = taken.iter().map(|&sequence| places(sequence).count()).min().unwrap_or(0);
        let part: Vec<usize> = taken.iter().flat_map(|&sequence| places(sequence).take(length)).collect();
        for &place in &part {
            done[place] = true;
        }
        left.retain(|&place| !done[place]);
        parts.push(part);
    }
    parts
}

fn name(tensor: &sys::ggml_tensor) -> &CStr {
    CStr::from_bytes_until_nul(bytemuck::cast_slice(&tensor.name)).unwrap_or_default()
}

/// The block that ends with a node, according to the name that llama.cpp gives the node.
pub fn block(node: &sys::ggml_tensor) -> Option<u32> {
    name(node).to_str().ok()?.strip_prefix("l_out-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_divided_as_llama_cpp_does() {
        let cases: [(&[i32], &[&[usize]]); 6] = [
            (&[3], &[&[0]]),
            // A rectangle of neighbouring sequences stays as it is.
            (&[1, 1, 2, 2], &[&[0, 1, 2, 3]]),
            // Interleaved sequences are separated.
            (&[0, 1, 0, 1], &[&[0, 2, 1, 3]]),
            // A longer sequence continues in another graph.
            (&[0, 0, 0, 1], &[&[0, 3], &[1, 2]]),
            // Only consecutive numbers go together.
            (&[2, 0, 1], &[&[0], &[1, 2]]),
            (&[0, 2, 1, 3], &[&[0, 2], &[1, 3]]),
        ];
        for (sequences, parts) in cases {
            assert_eq!(divide(sequences), parts, "{sequences:?}");
        }
    }
}
