//! Nodes `ADD` at the end of blocks, with Felix spokes behind them, computed by [`crate::engine::kernels::felix`].
//!
//! Rows of a node are tokens of a batch in the order in which llama.cpp computes them, so this knows how llama.cpp divides
//! batches, holds that against the tokens in each graph, and counts which blocks it has seen: a spoke that would be left
//! out somewhere is an error and no silent change of answers.

use std::cell::UnsafeCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::ptr::NonNull;
use std::rc::Rc;

use llama_cpp_sys_2 as sys;

use super::work_queue::WorkQueue;
use super::{is_host, make_room, size};
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
    /// Tokens that are not those of the batch in the order that is expected.
    #[error(
        "llama.cpp divided the batch in an unknown order, so nobody knows which row has which Felix spoke"
    )]
    Order,
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
    /// For each row, its spoke's place among the uses.
    rows: Vec<Option<usize>>,
    /// The same for those rows whose logits are wanted: llama.cpp computes the last block for them alone.
    outputs: Vec<Option<usize>>,
    /// Blocks whose end was found.
    seen: BTreeSet<u32>,
}

/// A batch as it is given to llama.cpp.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Tokens.
    pub tokens: &'a [i32],
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
                part.rows.push(spokes[place]);
                if batch.logits[place] != 0 {
                    part.outputs.push(spokes[place]);
                }
            }
            self.parts.push(part);
        }
    }

    /// The batch was computed: whether each spoke has acted behind each of its blocks.
    pub fn end(&self) -> Result<(), FelixError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.begun != self.parts.len() {
            return Err(FelixError::Order);
        }
        for part in &self.parts {
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

    /// Looks for the node that a graph begins with: the one that turns tokens into rows.
    pub fn see(&mut self, node: &sys::ggml_tensor) {
        // SAFETY: sources of a node live as long as the node, and inputs are set before nodes are asked for.
        let tokens = unsafe {
            let (Some(table), Some(ids)) = (node.src[0].as_ref(), node.src[1].as_ref()) else { return };
            if name(table) != c"token_embd.weight" || name(ids) != c"inp_tokens" {
                return;
            }
            if ids.type_ != sys::GGML_TYPE_I32 || !is_host(ids) || ids.nb[0] != 4 {
                self.fault = Some(FelixError::Order);
                return;
            }
            std::slice::from_raw_parts(ids.data.cast::<i32>(), size(ids)[0])
        };
        if self.parts.get(self.begun).is_none_or(|part| part.tokens != tokens) {
            self.fault = Some(FelixError::Order);
        }
        self.begun += 1;
    }
}

/// How llama.cpp divides a batch whose sequences have a stream of its cache each (`llama_batch_allocr::split_equal`, as
/// every kind of memory calls it): a graph has sequences whose numbers follow each other in the order in which they come,
/// each with equally many tokens, one sequence behind the other. Gives places in the batch.
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
    /// What goes in, `[columns, D]`, and what is between its matrices, `[columns, R]` of each spoke. Each number is written
    /// by the thread that drew its unit, and read when all of the stage are written.
    norms: UnsafeCell<Vec<f32>>,
    hidden: UnsafeCell<Vec<f32>>,
}

/// One node.
#[derive(Debug)]
pub struct Task {
    form: Form,
    width: usize,
    groups: Vec<Group>,
    /// For each row, where among the columns its norm goes, and of which group it is.
    columns: Vec<Option<(usize, usize)>>,
    adding: WorkQueue,
    down: Product,
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
    /// Where its columns begin: of the norms, and of what is hidden.
    norms: usize,
    hidden: usize,
}

/// Panels of the same matrix of all groups, shared out.
#[derive(Debug)]
struct Product {
    /// Group and panels.
    units: Vec<(usize, std::ops::Range<usize>)>,
    stage: WorkQueue,
}

impl Product {
    fn new<'g>(matrices: impl Iterator<Item = &'g Matrix>, threads: usize) -> Self {
        let mut units = Vec::new();
        for (group, matrix) in matrices.enumerate() {
            let all = matrix.panels();
            let share = all.div_ceil(threads * UNITS);
            units.extend((0..all).step_by(share).map(|first| (group, first..all.min(first + share))));
        }
        Self { stage: WorkQueue::new(units.len()), units }
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
                hidden: 0,
            });
            group.rows.push((row, *scale));
        }
        part.seen.insert(block);
        if groups.is_empty() {
            return None;
        }
        let mut groups: Vec<Group> = groups.into_values().collect();
        let mut columns = vec![None; count];
        let (mut norms, mut hidden) = (0, 0);
        for (at, group) in groups.iter_mut().enumerate() {
            (group.norms, group.hidden) = (norms, hidden);
            for &(row, _) in &group.rows {
                columns[row] = Some((norms, at));
                norms += width;
            }
            hidden += group.rows.len() * group.layer().down.rows();
        }
        make_room(scratch.norms.get_mut(), norms);
        make_room(scratch.hidden.get_mut(), hidden);
        let down = Product::new(groups.iter().map(|group| &group.layer().down), threads);
        let up = Product::new(groups.iter().map(|group| &group.layer().up), threads);
        Some(Self { form, width, groups, columns, adding: WorkQueue::new(count), down, up })
    }

    /// Takes part in the computation.
    ///
    /// # Safety
    /// The node is the one that the task was made of, and is being computed.
    pub unsafe fn work(&self, node: &sys::ggml_tensor, scratch: &Scratch) {
        let width = self.width;
        // SAFETY: `Task::of` has seen that the sources are there, of this type and size, and in host memory, and has made
        // room in the scratch memory. Units of a stage don't overlap, and a stage begins when the one before has ended.
        unsafe {
            let (a, b, out) = ((*node.src[0]).data, (*node.src[1]).data, node.data);
            let (a, b, out) = (a.cast::<f32>(), b.cast::<f32>(), out.cast::<f32>());
            let norms = (*scratch.norms.get()).as_mut_ptr();
            let hidden = (*scratch.hidden.get()).as_mut_ptr();
            self.adding.work(|row| {
                // The result may stand where a source stands.
                for i in row * width..(row + 1) * width {
                    *out.add(i) = *a.add(i) + *b.add(i);
                }
                if let Some((column, group)) = self.columns[row] {
                    let group = &self.groups[group];
                    let h = std::slice::from_raw_parts(out.add(row * width).cast_const(), width);
                    let n = std::slice::from_raw_parts_mut(norms.add(column), width);
                    group.layer().normalise(group.eps, h, n);
                }
            });
            self.adding.wait();
            self.down.stage.work(|unit| {
                let (group, panels) = &self.down.units[unit];
                let (group, matrix) = (&self.groups[*group], &self.groups[*group].layer().down);
                let count = group.rows.len() * width;
                let columns = std::slice::from_raw_parts(norms.add(group.norms).cast_const(), count);
                matrix.multiply(self.form, panels.clone(), columns, |column, first, result| {
                    let to = hidden.add(group.hidden + column * matrix.rows() + first);
                    let length = ROWS.min(matrix.rows() - first);
                    std::ptr::copy_nonoverlapping(silu(result).as_ptr(), to, length);
                });
            });
            self.down.stage.wait();
            self.up.stage.work(|unit| {
                let (group, panels) = &self.up.units[unit];
                let (group, matrix) = (&self.groups[*group], &self.groups[*group].layer().up);
                let count = group.rows.len() * matrix.depth();
                let columns = std::slice::from_raw_parts(hidden.add(group.hidden).cast_const(), count);
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
        // SAFETY: the plan keeps the weights until its uses are set anew, which no task outlives unfinished; what a task of
        // an earlier batch points to is not read any more.
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
