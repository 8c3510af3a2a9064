//! `ADD` nodes at the end of blocks, followed by Felix spokes, computed by
//! [`crate::engine::kernels::felix`].
//!
//! The rows of a node are the tokens of a batch in the order in which llama.cpp computes them. This
//! module predicts how llama.cpp divides batches, compares the prediction with the tokens,
//! positions and sequences in each graph, and records which blocks it has seen. A spoke that would
//! be left out, or act on a row of another sequence, is an error and not a silent change of
//! answers.

mod plan;

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use llama_cpp_sys_2 as sys;

pub use self::plan::{Plan, Rows, block};

use super::scratch::{self, Blocks, Fill};
use super::work_queue::WorkQueue;
use super::{is_host, size};
use crate::engine::kernels::Form;
use crate::engine::kernels::felix::{Layer, Matrix, ROWS, Weights, silu};

/// Units of weights per thread, so that all threads end at about the same time.
const UNITS: usize = 4;

/// A sequence, its spoke, and the spoke's scale.
pub type Use = (u32, Rc<Weights>, f32);

/// Why a batch was not computed with its spokes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FelixError {
    /// No node was recognised as the end of a block.
    #[error(
        "llama.cpp's graph has no sum at the end of block {0} in host memory, so a Felix spoke can't act on this model"
    )]
    Block(u32),
    /// Tokens, positions or sequences of a graph are not those of the batch in the expected order.
    #[error(
        "llama.cpp divided the batch in an unknown order, so it is unknown which row has which Felix spoke"
    )]
    Order,
    /// Two sequences could have been exchanged unnoticed.
    #[error(
        "sequences with the same tokens have different Felix spokes, and llama.cpp's graph doesn't say which row is whose: this model has no cache of keys"
    )]
    Alike,
}

/// Intermediate results of the node that is being computed.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Inputs of the bottlenecks, `[columns, D]`.
    norms: scratch::Scratch<f32>,
    /// Activations between the two matrices, `[columns, R]` for each spoke.
    hidden: scratch::Scratch<f32>,
}

/// One node.
#[derive(Debug)]
pub struct Task {
    form: Form,
    width: usize,
    groups: Vec<Group>,
    /// Rows that have a spoke, each with its group, ordered by group.
    rows: Vec<(usize, usize)>,
    /// The other rows, which are only added.
    others: Vec<usize>,
    /// One unit for each row with a spoke.
    norms: Fill,
    adding: WorkQueue,
    down: Fill,
    up: Product,
}

/// Rows with the same spoke.
#[derive(Debug)]
struct Group {
    /// Lives as long as the plan's uses, which don't change while a batch is computed.
    layer: NonNull<Layer>,
    eps: f32,
    /// Rows of the node, each with the scale of the spoke.
    rows: Vec<(usize, f32)>,
    /// Where the group's columns begin in the norms.
    norms: usize,
}

/// Number of panels of a unit.
fn share(matrix: &Matrix, threads: usize) -> usize {
    matrix.panels().div_ceil(threads * UNITS).max(1)
}

/// The products of all groups with their own matrix, divided into units.
#[derive(Debug)]
struct Product {
    /// The group and the panels of each unit.
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
    /// The task, if a row of the node has a spoke after the block that ends here.
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
        // SAFETY: sources of a node live as long as the node, and nothing writes to them now.
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
            // Sequences with the same spoke share each read of its weights.
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
    /// The node is the one that the task was made from. It is being computed, and no other node is.
    pub unsafe fn work(&self, node: &sys::ggml_tensor, scratch: &Scratch) {
        let width = self.width;
        // SAFETY: `Task::of` has checked that the sources exist, with this type and size, in host
        // memory. No other node is being computed, so this one has exclusive use of the scratch
        // memory. A row is added by one thread. `up` adds to it only when all rows with a spoke are
        // done, and its units write different elements.
        unsafe {
            let (a, b, out) = ((*node.src[0]).data, (*node.src[1]).data, node.data);
            let (a, b, out) = (a.cast::<f32>(), b.cast::<f32>(), out.cast::<f32>());
            let add = |row: usize| {
                // The result may be in the same place as a source.
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
        // SAFETY: the plan keeps the weights until its next uses are set, and no task is unfinished
        // then. The pointer of a finished task is not read any more.
        unsafe { self.layer.as_ref() }
    }
}
