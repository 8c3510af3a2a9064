//! `FLASH_ATTN_EXT` nodes of few rows, computed by [`crate::engine::kernels::attention`].

use std::cell::RefCell;

use half::f16;
use llama_cpp_sys_2 as sys;

use super::scratch::{self, Join};
use super::{Parameters, is_host, size};
use crate::engine::kernels::Form;
use crate::engine::kernels::attention::{BLOCK, Cells, Partial, View, WIDTHS, attend};

/// Minimum number of cells that are worth a part of their own.
const PART: usize = 8 * BLOCK;

/// The results of the parts of each stream and head of keys and values.
pub type Scratch = scratch::Scratch<Partial>;

/// One node.
#[derive(Debug)]
pub struct Task {
    form: Form,
    shape: Shape,
    /// The parts of each stream and head of keys and values.
    join: Join,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    width: usize,
    rows: usize,
    heads: usize,
    kv_heads: usize,
    cells: usize,
    streams: usize,
    /// Parts into which the cells are divided, so that all threads have work.
    parts: usize,
}

/// One of a node's parameters. Attention has the scale, the slope of linear biases, and the soft
/// cap.
fn parameter(params: &[i32; 16], index: usize) -> f32 {
    f32::from_bits(params[index].cast_unsigned())
}

impl Shape {
    /// The shape, if the kernel covers the node.
    fn of(node: &sys::ggml_tensor, threads: usize) -> Option<Self> {
        // The sources of `ggml_flash_attn_ext`.
        let [q, k, v, mask, sinks, ..] = node.src;
        if [q, k, v, mask].iter().any(|source| source.is_null()) || !sinks.is_null() {
            return None;
        }
        // SAFETY: sources of a node live as long as the node, and nothing writes to them now.
        let (q, k, v, mask) = unsafe { (&*q, &*k, &*v, &*mask) };
        // The kernel supports neither linear biases nor a soft cap.
        if parameter(&node.op_params, 1) != 0.0 || parameter(&node.op_params, 2) != 0.0 {
            return None;
        }
        let ([width, rows, heads, streams], [k_width, cells, kv_heads, k_streams]) = (size(q), size(k));
        let [mask_cells, mask_rows, mask_heads, mask_streams] = size(mask);
        let covered = q.type_ == sys::GGML_TYPE_F32
            && [k, v, mask].iter().all(|tensor| tensor.type_ == sys::GGML_TYPE_F16)
            && node.type_ == sys::GGML_TYPE_F32
            && [node, q, k, v, mask].iter().all(|tensor| is_host(tensor))
            && q.nb[0] == 4
            && [k, v, mask].iter().all(|tensor| tensor.nb[0] == 2 && tensor.nb.iter().all(|nb| nb % 2 == 0))
            && q.nb.iter().all(|nb| nb % 4 == 0)
            && WIDTHS.contains(&width)
            && k_width == width
            && size(v) == size(k)
            && k_streams == streams
            && kv_heads > 0
            && heads % kv_heads == 0
            && rows > 0
            && cells > 0
            && mask_cells >= cells
            && mask_rows >= rows
            && mask_heads == 1
            && mask_streams == streams
            && size(node) == [width, heads, rows, streams]
            && node.nb == [4, 4 * width, 4 * width * heads, 4 * width * heads * rows];
        let units = kv_heads * streams;
        let parts = if units >= threads { 1 } else { threads.div_ceil(units).min(cells / PART).max(1) };
        covered.then_some(Self { width, rows, heads, kv_heads, cells, streams, parts })
    }
}

impl Task {
    /// The task, if the kernel covers the node.
    pub fn of(
        node: &sys::ggml_tensor,
        threads: usize,
        form: Option<Form>,
        scratch: &mut Scratch,
    ) -> Option<Self> {
        let form = form?;
        let shape = Shape::of(node, threads)?;
        let join = Join::new(shape.kv_heads * shape.streams, shape.parts);
        scratch.make_room(join.length());
        Some(Self { form, shape, join })
    }

    /// Computes parts until none is left.
    ///
    /// # Safety
    /// The node is the one that the task was made from, with these parameters. It is being
    /// computed, and no other node is.
    pub unsafe fn work(&self, node: &sys::ggml_tensor, given: &Parameters, scratch: &Scratch) {
        thread_local! {
            static QUERIES: RefCell<Vec<f32>> = RefCell::default();
        }
        let kv_heads = self.shape.kv_heads;
        // SAFETY: no other node is being computed, so this one has exclusive use of the scratch
        // memory.
        let joining = unsafe { self.join.of(scratch) };
        QUERIES.with_borrow_mut(|queries| {
            joining.work(
                |unit, part, partial| {
                    let (head, stream) = (unit % kv_heads, unit / kv_heads);
                    // SAFETY: the caller's promise.
                    unsafe { self.attend(node, parameter(given, 0), (stream, head, part), queries, partial) };
                },
                |unit, parts| {
                    let (head, stream) = (unit % kv_heads, unit / kv_heads);
                    let Some((first, others)) = parts.split_first_mut() else { return };
                    for part in others {
                        first.merge(part);
                    }
                    // SAFETY: the caller's promise; this is called once for each unit.
                    unsafe { self.write(node, stream, head, first.finish()) };
                },
            );
        });
    }

    /// Computes one part of the cells of a head of keys and values.
    ///
    /// # Safety
    /// As for [`Task::work`].
    unsafe fn attend(
        &self,
        node: &sys::ggml_tensor,
        scale: f32,
        (stream, head, part): (usize, usize, usize),
        queries: &mut Vec<f32>,
        partial: &mut Partial,
    ) {
        let Shape { width, rows, heads, kv_heads, cells, parts, .. } = self.shape;
        let group = heads / kv_heads;
        // SAFETY: `Shape::of` has checked that the sources exist, with these types and strides, in
        // host memory. A ggml tensor extends from `data` to its last element as the strides say.
        let view = unsafe {
            let [q, k, v, mask, ..] = node.src;
            let (q, k, v, mask) = (&*q, &*k, &*v, &*mask);
            queries.clear();
            for row in 0..rows {
                for head in head * group..(head + 1) * group {
                    let start = (row * q.nb[1] + head * q.nb[2] + stream * q.nb[3]) / 4;
                    let query = std::slice::from_raw_parts(q.data.cast::<f32>().add(start), width);
                    queries.extend(query.iter().map(|x| x * scale));
                }
            }
            let cells_of = |tensor: &sys::ggml_tensor| {
                let start =
                    tensor.data.cast::<f16>().add(head * (tensor.nb[2] / 2) + stream * (tensor.nb[3] / 2));
                let step = tensor.nb[1] / 2;
                let data = std::slice::from_raw_parts(start, step * (cells - 1) + width);
                Cells { data, step }
            };
            let start = mask.data.cast::<f16>().add(stream * mask.nb[3] / 2);
            let mask_step = mask.nb[1] / 2;
            let length = mask_step * (rows - 1) + cells;
            let added = std::slice::from_raw_parts(start, length);
            View { keys: cells_of(k), values: cells_of(v), mask: added, mask_step }
        };
        let blocks = cells.div_ceil(BLOCK);
        let border = |part: usize| (blocks * part / parts * BLOCK).min(cells);
        attend(self.form, queries, width, group, view, border(part)..border(part + 1), partial);
    }

    /// Writes the result of a head's rows to the node's data.
    ///
    /// # Safety
    /// As for [`Task::work`].
    unsafe fn write(&self, node: &sys::ggml_tensor, stream: usize, head: usize, result: &[f32]) {
        let Shape { width, rows, heads, kv_heads, .. } = self.shape;
        let group = heads / kv_heads;
        for (row, result) in result.chunks_exact(group * width).enumerate() {
            let start = ((stream * rows + row) * heads + head * group) * width;
            // SAFETY: the result of the node is contiguous ([`Shape::of`]), and only this unit
            // writes these elements.
            unsafe {
                let to = node.data.cast::<f32>().add(start);
                std::ptr::copy_nonoverlapping(result.as_ptr(), to, result.len());
            }
        }
    }
}
