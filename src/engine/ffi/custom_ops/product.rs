//! Nodes `MUL_MAT` of Q8_0 weights, computed by [`crate::engine::kernels::product`].

use std::cell::RefCell;

use llama_cpp_sys_2 as sys;

use super::scratch::{self, Blocks, Fill};
use super::work_queue::WorkQueue;
use super::{is_host, size};
use crate::engine::kernels::Form;
use crate::engine::kernels::product::{BLOCK, BLOCK_BYTES, Block, Packed, Panels, ROWS};
use crate::engine::kernels::{multiply_rows, pack};

/// Blocks of activations that are packed at a time: work for some microseconds.
const PIECE: usize = 64;
/// Minimum of rows times blocks times columns of a unit: work for some microseconds, much longer
/// than it takes to draw the unit.
const UNIT: usize = 1 << 15;
/// Units of weights per thread, so that all threads end at about the same time.
const UNITS: usize = 8;

/// The packed activations of the node that is being computed.
pub type Scratch = scratch::Scratch<Packed>;

/// One node.
#[derive(Debug)]
pub struct Task {
    form: Form,
    /// Blocks of a row of weights and of a column of activations.
    blocks: usize,
    rows: usize,
    columns: usize,
    /// Rows of weights of a unit.
    share: usize,
    /// `None` if the previous node has the same activations.
    packing: Option<Fill>,
    multiplying: WorkQueue,
}

impl Task {
    /// The task, if the kernel covers the node.
    pub fn of(
        node: &sys::ggml_tensor,
        threads: usize,
        form: Option<Form>,
        scratch: &mut Scratch,
        packed: &mut *const sys::ggml_tensor,
    ) -> Option<Self> {
        let form = form?;
        let [weights, given, ..] = node.src;
        if weights.is_null() || given.is_null() {
            return None;
        }
        let source = given.cast_const();
        // SAFETY: sources of a node live as long as the node, and nothing writes to them now.
        let (weights, given) = unsafe { (&*weights, &*given) };
        let ([width, rows, ..], [_, columns, ..]) = (size(weights), size(given));
        let blocks = width / BLOCK;
        let covered = weights.type_ == sys::GGML_TYPE_Q8_0
            && given.type_ == sys::GGML_TYPE_F32
            && node.type_ == sys::GGML_TYPE_F32
            // No hint that the product is of another kind.
            && node.op_params == [0; 16]
            && [node, weights, given].iter().all(|tensor| is_host(tensor))
            && width > 0
            && width % BLOCK == 0
            && rows > 0
            && rows % ROWS == 0
            && columns > 0
            && size(weights) == [width, rows, 1, 1]
            && weights.nb[..2] == [BLOCK_BYTES, BLOCK_BYTES * blocks]
            && size(given) == [width, columns, 1, 1]
            && given.nb[0] == 4
            && given.nb[1] % 4 == 0
            && size(node) == [rows, columns, 1, 1]
            && node.nb[..2] == [4, 4 * rows];
        if !covered {
            return None;
        }
        scratch.make_room(columns * blocks);
        let pieces = Blocks { count: columns, columns: 1, width: blocks, share: PIECE };
        let packing = (*packed != source).then(|| Fill::new([pieces]));
        *packed = source;
        // Moving a block into lanes costs as much as computing four columns.
        let least = UNIT / (blocks * (4 + columns));
        let share = rows.div_ceil(threads * UNITS).max(least.min(rows.div_ceil(threads)));
        // Two groups of rows share each read of the columns.
        let share = share.next_multiple_of(2 * ROWS);
        let multiplying = WorkQueue::new(rows.div_ceil(share));
        Some(Self { form, blocks, rows, columns, share, packing, multiplying })
    }

    /// Whether it packs the activations. If not, it uses those of the previous node.
    #[cfg(test)]
    pub fn packs(&self) -> bool {
        self.packing.is_some()
    }

    /// Takes part in the computation.
    ///
    /// # Safety
    /// The node is the one that the task was made of, and is being computed; no other node is.
    pub unsafe fn work(&self, node: &sys::ggml_tensor, scratch: &Scratch) {
        thread_local! {
            static PANELS: RefCell<Panels> = RefCell::default();
        }
        let Self { form, blocks, rows, columns, .. } = *self;
        // SAFETY: `Task::of` has checked that the sources exist, with these types and sizes, in
        // host memory. No other node is being computed, so this one has exclusive use of the
        // scratch memory. If it packs nothing, the last node of this run that did has filled the
        // memory with the same activations. Shares of the result don't overlap.
        unsafe {
            let (weights, given) = (&*node.src[0], &*node.src[1]);
            let packed = match &self.packing {
                Some(packing) => {
                    let packing = packing.of(scratch);
                    packing.work(|piece| {
                        let (column, range) = (piece.block(), piece.range());
                        let x = given.data.cast::<f32>();
                        let x = x.add(column * (given.nb[1] / 4) + range.start * BLOCK);
                        let x = std::slice::from_raw_parts(x.cast::<[f32; BLOCK]>(), range.len());
                        pack(form, x, piece.column(0));
                    });
                    packing.wait()
                }
                None => scratch.values(columns * blocks),
            };
            let weights = std::slice::from_raw_parts(weights.data.cast::<Block>(), rows * blocks);
            PANELS.with_borrow_mut(|panels| {
                let then = || self.multiplying.coming() * self.share;
                self.multiplying.work(|index| {
                    let first = index * self.share;
                    let share = first..rows.min(first + self.share);
                    multiply_rows(
                        form,
                        weights,
                        blocks,
                        share,
                        then,
                        packed,
                        panels,
                        |column, row, result| {
                            let to = node.data.cast::<f32>().add(column * rows + row);
                            std::ptr::copy_nonoverlapping(result.as_ptr(), to, ROWS);
                        },
                    );
                });
            });
        }
    }
}
