//! Nodes `ADD` at the end of blocks, with Felix spokes behind them, computed by
//! [`crate::engine::kernels::felix`].
//!
//! Rows of a node are tokens of a batch in the order in which llama.cpp computes them, so this
//! knows how llama.cpp divides batches, compares that with the tokens, positions and sequences in
//! each graph, and counts which blocks it has seen: a spoke that would be left out somewhere, or
//! act on a row of another sequence, is an error and no silent change of answers.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use llama_cpp_sys_2 as sys;

use super::scratch::{self, Blocks, Fill};
use super::work_queue::WorkQueue;
use super::{is_host, size};
use crate::engine::kernels::Form;
use crate::engine::kernels::felix::{Layer, Matrix, ROWS, Weights, silu};

/// Units of weights for each thread, so that all end at about the same time.
const UNITS: usize = 4;

/// A spoke of a sequence and how strongly it acts.
pub type Use = (u32, Rc<Weights>, f32);

/// Why a batch was not computed with its spokes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FelixError {
    /// No node that can be taken for the end of a block.
    #[error(
        "llama.cpp's graph has no sum at the end of block {0} in host memory, so a Felix spoke can't act on this model"
    )]
    Block(u32),
    /// Tokens, positions or sequences that are not those of the batch in the order that is
    /// expected.
    #[error(
        "llama.cpp divided the batch in an unknown order, so nobody knows which row has which Felix spoke"
    )]
    Order,
    /// Sequences that could have been exchanged without being noticed.
    #[error(
        "sequences with the same tokens have different Felix spokes, and llama.cpp's graph doesn't say which row is whose: this model has no cache of keys"
    )]
    Alike,
}

/// Which rows of the batch have which spoke.
#[derive(Debug, Default)]
pub struct Plan {
    uses: Vec<Use>,
    /// The graphs in which the batch is computed; none if no row has a spoke.
    parts: Vec<Part>,
    /// How many of them have begun.
    begun: usize,
    fault: Option<FelixError>,
}

/// The rows of one graph.
#[derive(Debug, Default, PartialEq)]
struct Part {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    sequences: Vec<i32>,
    /// Whether the graph has said which positions and which sequences its rows are of.
    told: Told,
    /// For each row, its spoke's place among the uses.
    rows: Vec<Option<usize>>,
    /// The same for those rows whose logits are wanted: llama.cpp computes the last block for them
    /// alone.
    outputs: Vec<Option<usize>>,
    /// Blocks whose end was found.
    seen: BTreeSet<u32>,
}

/// What a graph has said of its rows, besides their tokens.
#[derive(Debug, Default, PartialEq)]
struct Told {
    positions: bool,
    sequences: bool,
}

/// A batch as it is given to llama.cpp.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Tokens.
    pub tokens: &'a [i32],
    /// The position of each in its sequence.
    pub positions: &'a [i32],
    /// The sequence of each.
    pub sequences: &'a [i32],
    /// Whether its logits are wanted.
    pub logits: &'a [i8],
}

impl Plan {
    /// Which spokes the next batches are computed with, at most one for each sequence.
    pub fn set(&mut self, uses: &[Use]) {
        self.parts.clear();
        self.uses = uses.to_vec();
    }

    /// A batch will be computed.
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

    /// The batch was computed: whether each spoke has acted after each of its blocks, on the rows
    /// of its own sequences.
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

    /// Whether nodes must be looked at.
    pub fn acts(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Looks for what a graph says of its rows: it begins with the node that turns tokens into
    /// rows; others take their positions; and keys go to the places of their sequences.
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
                // A position may be several numbers; the first ones of all rows come first.
                Some(numbers::<i32>(second)?.get(..part.positions.len())? == part.positions)
            }),
            sys::GGML_OP_SET_ROWS => {
                // SAFETY: what a view is of lives as long as the view.
                let Some(keys) = (unsafe { node.view_src.as_ref() }) else { return };
                if !name(keys).to_bytes().starts_with(b"cache_k_l") {
                    return;
                }
                // `[width, places, streams]`: each sequence has a stream of places, which has its
                // number.
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

    /// Compares what the graph that has begun says with what was expected.
    fn compare(&mut self, is_same: impl FnOnce(&mut Part) -> Option<bool>) {
        if self.part().and_then(is_same) != Some(true) {
            self.fault = Some(FelixError::Order);
        }
    }

    /// The rows of the graph that has begun.
    fn part(&mut self) -> Option<&mut Part> {
        self.parts.get_mut(self.begun.checked_sub(1)?)
    }
}

impl Part {
    /// Whether two sequences with different spokes have the same in all that the graph says of its
    /// rows, if it doesn't say the sequences.
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

/// A graph's input of integers, which is set before nodes are asked for; none if it can't be read
/// here.
fn numbers<T: Input>(tensor: &sys::ggml_tensor) -> Option<&[T]> {
    let is_read = tensor.type_ == T::TYPE && tensor.nb[0] == size_of::<T>() && is_host(tensor);
    // SAFETY: the tensor is in host memory, of this type, and its first dimension is contiguous; an
    // input is written only before nodes are asked for.
    is_read.then(|| unsafe { std::slice::from_raw_parts(tensor.data.cast::<T>(), size(tensor)[0]) })
}

/// What inputs are made of.
trait Input {
    const TYPE: sys::ggml_type;
}

impl Input for i32 {
    const TYPE: sys::ggml_type = sys::GGML_TYPE_I32;
}

impl Input for i64 {
    const TYPE: sys::ggml_type = sys::GGML_TYPE_I64;
}

/// How llama.cpp divides a batch whose sequences have a stream of its cache each
/// (`llama_batch_allocr::split_equal`, as every kind of memory calls it): a graph has sequences
/// whose numbers follow each other in the order in which they come, each with equally many tokens,
/// one sequence behind the other. Gives places in the batch.
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

/// The block whose end a node is, by the name that llama.cpp gives it.
pub fn block(node: &sys::ggml_tensor) -> Option<u32> {
    name(node).to_str().ok()?.strip_prefix("l_out-")?.parse().ok()
}

/// Rows on their way through the bottleneck of the node that is computed.
#[derive(Debug, Default)]
pub struct Scratch {
    /// What goes in, `[columns, D]`.
    norms: scratch::Scratch<f32>,
    /// What is between the matrices, `[columns, R]` of each spoke.
    hidden: scratch::Scratch<f32>,
}

/// One node.
#[derive(Debug)]
pub struct Task {
    form: Form,
    width: usize,
    groups: Vec<Group>,
    /// Rows that have a spoke, group by group, each with its group.
    rows: Vec<(usize, usize)>,
    /// The others, which are only added.
    others: Vec<usize>,
    /// A unit for each row with a spoke.
    norms: Fill,
    adding: WorkQueue,
    down: Fill,
    up: Product,
}

/// Rows with the same spoke.
#[derive(Debug)]
struct Group {
    /// Lives as long as the uses of the plan, which don't change while a batch is computed.
    layer: NonNull<Layer>,
    eps: f32,
    /// Rows of the node, and how strongly the spoke acts on each.
    rows: Vec<(usize, f32)>,
    /// Where its columns begin among the norms.
    norms: usize,
}

/// Panels of a unit.
fn share(matrix: &Matrix, threads: usize) -> usize {
    matrix.panels().div_ceil(threads * UNITS).max(1)
}

/// Panels of the same matrix of all groups, shared out.
#[derive(Debug)]
struct Product {
    /// Group and panels.
    units: Vec<(usize, Range<usize>)>,
    queue: WorkQueue,
}

impl Product {
    fn new<'g>(matrices: impl Iterator<Item = &'g Matrix>, threads: usize) -> Self {
        let mut units = Vec::new();
        for (group, matrix) in matrices.enumerate() {
            let all = matrix.panels();
            let share = share(matrix, threads);
            units.extend((0..all).step_by(share).map(|first| (group, first..all.min(first + share))));
        }
        Self { queue: WorkQueue::new(units.len()), units }
    }
}

impl Task {
    /// The task, if a row of the node has a spoke behind the block that ends here.
    pub fn of(
        node: &sys::ggml_tensor,
        threads: usize,
        form: Form,
        plan: &mut Plan,
        scratch: &mut Scratch,
    ) -> Option<Self> {
        let block = block(node)?;
        let part = plan.parts.get_mut(plan.begun.checked_sub(1)?)?;
        let [a, b, ..] = node.src;
        // SAFETY: sources of a node live as long as the node, and nobody writes to them now.
        let (a, b) = unsafe { (a.as_ref()?, b.as_ref()?) };
        let [width, count, ..] = size(node);
        let covered = [node, a, b].iter().all(|tensor| {
            tensor.type_ == sys::GGML_TYPE_F32
                && size(tensor) == [width, count, 1, 1]
                && (count == 0 || is_host(tensor))
                && tensor.nb[..2] == [4, 4 * width]
        });
        let rows = if count == part.rows.len() { &part.rows } else { &part.outputs };
        if !covered || width == 0 || count != rows.len() {
            return None;
        }
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        for (row, at) in rows.iter().enumerate() {
            let Some(at) = *at else { continue };
            let (_, weights, scale) = &plan.uses[at];
            let Some(layer) = weights.layers.get(&block) else { continue };
            if weights.width != width {
                return None;
            }
            // Sequences with the same spoke share what is read of it.
            let first = plan.uses.iter().position(|(_, other, _)| Rc::ptr_eq(weights, other))?;
            let group = groups.entry(first).or_insert_with(|| Group {
                layer: NonNull::from(layer),
                eps: weights.eps,
                rows: Vec::new(),
                norms: 0,
            });
            group.rows.push((row, *scale));
        }
        part.seen.insert(block);
        if groups.is_empty() {
            return None;
        }
        let mut groups: Vec<Group> = groups.into_values().collect();
        let mut rows = Vec::new();
        for (at, group) in groups.iter_mut().enumerate() {
            group.norms = rows.len() * width;
            rows.extend(group.rows.iter().map(|&(row, _)| (row, at)));
        }
        let mut is_other = vec![true; count];
        for &(row, _) in &rows {
            is_other[row] = false;
        }
        let others: Vec<usize> = (0..count).filter(|&row| is_other[row]).collect();
        let norms = Fill::new([Blocks { count: rows.len(), columns: 1, width, share: width }]);
        let down = Fill::new(groups.iter().map(|group| {
            let down = &group.layer().down;
            Blocks {
                count: 1,
                columns: group.rows.len(),
                width: down.rows(),
                share: ROWS * share(down, threads),
            }
        }));
        scratch.norms.make_room(norms.length());
        scratch.hidden.make_room(down.length());
        let up = Product::new(groups.iter().map(|group| &group.layer().up), threads);
        let adding = WorkQueue::new(others.len());
        Some(Self { form, width, groups, rows, others, norms, adding, down, up })
    }

    /// Takes part in the computation.
    ///
    /// # Safety
    /// The node is the one that the task was made of, and is being computed; no other node is.
    pub unsafe fn work(&self, node: &sys::ggml_tensor, scratch: &Scratch) {
        let width = self.width;
        // SAFETY: `Task::of` has seen that the sources are there, of this type and size, and in
        // host memory. No other node is being computed, so this one has the scratch memory alone. A
        // row is added by one thread; what `up` adds to it comes when all rows with a spoke are
        // done, and each unit has numbers of its own.
        unsafe {
            let (a, b, out) = ((*node.src[0]).data, (*node.src[1]).data, node.data);
            let (a, b, out) = (a.cast::<f32>(), b.cast::<f32>(), out.cast::<f32>());
            let add = |row: usize| {
                // The result may stand where a source stands.
                for i in row * width..(row + 1) * width {
                    *out.add(i) = *a.add(i) + *b.add(i);
                }
            };
            let (norms, hidden) = (self.norms.of(&scratch.norms), self.down.of(&scratch.hidden));
            norms.work(|part| {
                let (row, group) = self.rows[part.block()];
                add(row);
                let group = &self.groups[group];
                let h = std::slice::from_raw_parts(out.add(row * width).cast_const(), width);
                group.layer().normalise(group.eps, h, part.column(0));
            });
            self.adding.work(|at| add(self.others[at]));
            let norms = norms.wait();
            hidden.work(|part| {
                let group = &self.groups[part.group()];
                let (matrix, rows) = (&group.layer().down, part.range());
                let columns = &norms[group.norms..][..group.rows.len() * width];
                let panels = rows.start / ROWS..rows.end.div_ceil(ROWS);
                matrix.multiply(self.form, panels, columns, |column, first, result| {
                    let length = ROWS.min(rows.end - first);
                    let to = &mut part.column(column)[first - rows.start..][..length];
                    to.copy_from_slice(&silu(result)[..length]);
                });
            });
            let hidden = hidden.wait();
            self.up.queue.work(|unit| {
                let (at, panels) = &self.up.units[unit];
                let (group, matrix) = (&self.groups[*at], &self.groups[*at].layer().up);
                let columns = &hidden[self.down.start(*at)..][..group.rows.len() * matrix.depth()];
                matrix.multiply(self.form, panels.clone(), columns, |column, first, result| {
                    let (row, scale) = group.rows[column];
                    let to = out.add(row * width + first);
                    for (i, added) in result.iter().enumerate().take(width - first) {
                        *to.add(i) += scale * added;
                    }
                });
            });
        }
    }
}

impl Group {
    fn layer(&self) -> &Layer {
        // SAFETY: the plan keeps the weights until its uses are set anew, which no task outlives
        // unfinished; what a task of an earlier batch points to is not read any more.
        unsafe { self.layer.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_divided_as_llama_cpp_does() {
        let cases: [(&[i32], &[&[usize]]); 6] = [
            (&[3], &[&[0]]),
            // A rectangle of neighbours stays as it is.
            (&[1, 1, 2, 2], &[&[0, 1, 2, 3]]),
            // Tokens of sequences in turn are put together.
            (&[0, 1, 0, 1], &[&[0, 2, 1, 3]]),
            // What is longer goes on in another graph.
            (&[0, 0, 0, 1], &[&[0, 3], &[1, 2]]),
            // Only numbers that follow each other go together.
            (&[2, 0, 1], &[&[0], &[1, 2]]),
            (&[0, 2, 1, 3], &[&[0, 2], &[1, 3]]),
        ];
        for (sequences, parts) in cases {
            assert_eq!(divide(sequences), parts, "{sequences:?}");
        }
    }
}
