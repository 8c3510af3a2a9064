//! Nodes of llama.cpp's graph that are computed here instead.
//!
//! The scheduler asks its callback for each node before it computes any; the callback wants none of them (so the graph is
//! not split), but makes attention nodes into nodes of `GGML_OP_CUSTOM`, which llama.cpp's own threads compute by calling
//! back. Only nodes in host memory are touched, and only those whose kinds and shapes the kernel covers; the rest stays
//! llama.cpp's.

use std::cell::{RefCell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use llama_cpp_sys_2 as sys;

use crate::engine::attention::{BLOCK, Cells, Partial, View, WIDTHS, attend};

/// From this many rows of a stream on llama.cpp multiplies tiles of them, which is as fast.
const TILED: usize = 64;
/// Fewest cells that are worth a part of their own.
const PART: usize = 8 * BLOCK;

/// What the callback knows; it must stay where it is while a context points to it.
#[derive(Debug)]
pub struct Rewriter {
    /// llama.cpp has pointers into it.
    slots: Box<[Slot]>,
    next: usize,
    threads: usize,
}

/// One attention node and its state.
#[derive(Debug, Default)]
struct Slot {
    /// Parameters of a custom node that calls [`compute`] with this slot.
    params: [i32; 16],
    /// Parameters of the node as llama.cpp made it.
    given: [i32; 16],
    shape: Shape,
    /// The next unit of work.
    next: AtomicUsize,
    /// For each stream and head of keys and values: parts that are not computed yet, and what they give.
    units: Vec<Unit>,
}

#[derive(Debug)]
struct Unit {
    left: AtomicUsize,
    /// Each is written by the thread that drew it; all are read by the one that finished last.
    parts: Vec<UnsafeCell<Partial>>,
}

// SAFETY: `parts` is shared between threads as described at the field: indices are drawn from `next`, so no two threads
// write one, and `left` orders the writes before the reading of the last.
unsafe impl Sync for Slot {}

/// Shape of an attention node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

impl Rewriter {
    /// For a model with so many layers, computed by so many threads.
    pub fn new(layers: usize, threads: usize) -> Self {
        // The graph that is being built and the one before it have nodes.
        let mut slots: Box<[Slot]> = (0..2 * layers.max(1)).map(|_| Slot::default()).collect();
        for slot in &mut slots {
            slot.params = custom_parameters(std::ptr::from_mut(slot).cast());
        }
        Self { slots, next: 0, threads: threads.max(1) }
    }

    /// What to give the scheduler.
    pub fn callback(&mut self) -> (sys::ggml_backend_sched_eval_callback, *mut c_void) {
        (Some(ask), std::ptr::from_mut(self).cast())
    }

    /// Looks at a node that is about to be computed.
    fn see(&mut self, node: &mut sys::ggml_tensor) {
        let slot = match node.op {
            // A graph that is used again has the nodes that it was given.
            sys::GGML_OP_CUSTOM => self.slots.iter().position(|slot| slot.params == node.op_params),
            sys::GGML_OP_FLASH_ATTN_EXT if Shape::of(node, self.threads).is_some() => {
                self.next = (self.next + 1) % self.slots.len();
                Some(self.next)
            }
            _ => None,
        };
        let Some(slot) = slot.map(|index| &mut self.slots[index]) else { return };
        if node.op == sys::GGML_OP_CUSTOM {
            // As it was, to be judged anew.
            node.op = sys::GGML_OP_FLASH_ATTN_EXT;
            node.op_params = slot.given;
        }
        if let Some(shape) = Shape::of(node, self.threads) {
            slot.given = node.op_params;
            node.op = sys::GGML_OP_CUSTOM;
            node.op_params = slot.params;
            slot.begin(shape);
        }
    }
}

/// A number among a node's parameters: of attention the scale, the slope of linear biases, and the soft cap.
fn parameter(params: &[i32; 16], index: usize) -> f32 {
    f32::from_bits(params[index].cast_unsigned())
}

impl Shape {
    /// The shape, if the kernel covers the node.
    fn of(node: &sys::ggml_tensor, threads: usize) -> Option<Self> {
        // Of `ggml_flash_attn_ext`: queries, keys, values, mask, sinks.
        let [q, k, v, mask, sinks, ..] = node.src;
        if [q, k, v, mask].iter().any(|source| source.is_null()) || !sinks.is_null() {
            return None;
        }
        // SAFETY: sources of a node live as long as the node, and nobody writes to them now.
        let (q, k, v, mask) = unsafe { (&*q, &*k, &*v, &*mask) };
        // Neither linear biases nor a soft cap.
        if parameter(&node.op_params, 1) != 0.0 || parameter(&node.op_params, 2) != 0.0 {
            return None;
        }
        let size = |tensor: &sys::ggml_tensor| tensor.ne.map(|n| usize::try_from(n).unwrap_or(0));
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
            && (1..TILED).contains(&rows)
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

/// Whether a tensor's data can be read here.
fn is_host(tensor: &sys::ggml_tensor) -> bool {
    // SAFETY: a view's buffer is its source's, and a buffer that is not null lives.
    unsafe {
        let buffer = match tensor.view_src.as_ref() {
            Some(source) if tensor.buffer.is_null() => source.buffer,
            _ => tensor.buffer,
        };
        !tensor.data.is_null() && !buffer.is_null() && sys::ggml_backend_buffer_is_host(buffer)
    }
}

impl Slot {
    /// Makes ready for a computation.
    fn begin(&mut self, shape: Shape) {
        *self.next.get_mut() = 0;
        let units = shape.kv_heads * shape.streams;
        self.units.resize_with(units, || Unit { left: AtomicUsize::new(0), parts: Vec::new() });
        for unit in &mut self.units {
            *unit.left.get_mut() = shape.parts;
            unit.parts.resize_with(shape.parts, Default::default);
        }
        self.shape = shape;
    }

    /// Computes units of a node until none is left.
    ///
    /// # Safety
    /// The node is the one that [`Slot::begin`] was called for.
    unsafe fn work(&self, node: &sys::ggml_tensor) {
        thread_local! {
            static QUERIES: RefCell<Vec<f32>> = RefCell::default();
        }
        QUERIES.with_borrow_mut(|queries| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                let (unit, part) = (index / self.shape.parts, index % self.shape.parts);
                let Some(place) = self.units.get(unit) else { return };
                // SAFETY: the caller's promise; this thread alone drew the index.
                unsafe {
                    let head = unit % self.shape.kv_heads;
                    let stream = unit / self.shape.kv_heads;
                    let partial = &mut *place.parts[part].get();
                    self.attend(node, stream, head, part, queries, partial);
                    if place.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                        // All parts are written, and no other thread will read them.
                        let first = &mut *place.parts[0].get();
                        place.parts[1..].iter().for_each(|part| first.merge(&*part.get()));
                        self.write(node, stream, head, first.finish());
                    }
                }
            }
        });
    }

    /// One part of the cells of a head of keys and values.
    ///
    /// # Safety
    /// As for [`Slot::work`].
    #[allow(clippy::too_many_arguments)]
    unsafe fn attend(
        &self,
        node: &sys::ggml_tensor,
        stream: usize,
        head: usize,
        part: usize,
        queries: &mut Vec<f32>,
        partial: &mut Partial,
    ) {
        let Shape { width, rows, heads, kv_heads, cells, parts, .. } = self.shape;
        let (group, scale) = (heads / kv_heads, parameter(&self.given, 0));
        // SAFETY: `Shape::of` has seen that the sources are there, of these types and strides, and in host memory; ggml's
        // tensors reach from `data` to the last element by their strides.
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
        attend(queries, width, group, view, border(part)..border(part + 1), partial);
    }

    /// Puts the result of a head's rows where the next node reads it.
    ///
    /// # Safety
    /// As for [`Slot::work`].
    unsafe fn write(&self, node: &sys::ggml_tensor, stream: usize, head: usize, result: &[f32]) {
        let Shape { width, rows, heads, kv_heads, .. } = self.shape;
        let group = heads / kv_heads;
        for (row, result) in result.chunks_exact(group * width).enumerate() {
            let start = ((stream * rows + row) * heads + head * group) * width;
            // SAFETY: the result of a node is contiguous ([`Shape::of`]); these elements belong to this unit alone.
            unsafe {
                let to = node.data.cast::<f32>().add(start);
                std::ptr::copy_nonoverlapping(result.as_ptr(), to, result.len());
            }
        }
    }
}

/// Parameters of a custom node that calls [`compute`] with `data`, as ggml itself writes them.
fn custom_parameters(data: *mut c_void) -> [i32; 16] {
    // SAFETY: the context lives until it is freed below, and has room for both tensors; no memory is given to them.
    unsafe {
        let params = sys::ggml_init_params {
            mem_size: 4 * sys::ggml_tensor_overhead(),
            mem_buffer: null_mut(),
            no_alloc: true,
        };
        let context = sys::ggml_init(params);
        assert!(!context.is_null(), "ggml has no memory for a node");
        let mut arguments = [sys::ggml_new_tensor_1d(context, sys::GGML_TYPE_F32, 1)];
        let all = -1;
        let node = sys::ggml_custom_4d(
            context,
            sys::GGML_TYPE_F32,
            1,
            1,
            1,
            1,
            arguments.as_mut_ptr(),
            1,
            Some(compute),
            all,
            data,
        );
        let parameters = (*node).op_params;
        sys::ggml_free(context);
        parameters
    }
}

/// Called for each node before the graph is computed; wants none.
unsafe extern "C" fn ask(node: *mut sys::ggml_tensor, asks: bool, data: *mut c_void) -> bool {
    if asks && !node.is_null() {
        // SAFETY: the data is the rewriter, which outlives the context; nothing is computed while nodes are asked for.
        unsafe { (*data.cast::<Rewriter>()).see(&mut *node) };
    }
    false
}

/// Called by each of llama.cpp's threads for a node that was rewritten.
unsafe extern "C" fn compute(
    node: *mut sys::ggml_tensor,
    _thread: c_int,
    _threads: c_int,
    data: *mut c_void,
) {
    // SAFETY: the data is the node's slot, which the rewriter owns, and `see` has begun it for this computation.
    unsafe { (*data.cast::<Slot>()).work(&*node) };
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use llama_cpp_2::model::LlamaModel;
    use llama_cpp_2::model::params::LlamaModelParams;

    use crate::engine::backend::backend;
    use crate::engine::ffi::{Batch, Context, ContextSettings};
    use crate::model::gguf_file::{Precision, export, import};
    use crate::model::stand_in::{self, Shape};

    fn load(path: &Path) -> LlamaModel {
        LlamaModel::load_from_file(backend(), path, &LlamaModelParams::default()).unwrap()
    }

    /// Logits of a conversation in several sequences: a prompt that llama.cpp's own kernel computes, single rows, several
    /// rows, several sequences at once (some with a row that nobody reads), a sequence that is cut back and continued.
    fn logits(model: &LlamaModel, threads: u32, own_attention: bool) -> Vec<f32> {
        let settings = ContextSettings { tokens: 1024, batch: 512, sequences: 3, threads, own_attention };
        let mut context = Context::new(model, settings).unwrap();
        let token = |sequence: u32, position: u32| 5 + (position * 37 + sequence * 101) % 900;
        let mut all = Vec::new();
        let mut decode = |context: &mut Context<'_>, rows: &[(u32, std::ops::Range<u32>)]| {
            let mut batch = Batch::default();
            for (sequence, positions) in rows {
                for position in positions.clone() {
                    let last = position + 1 == positions.end;
                    batch.push(token(*sequence, position), position, *sequence, last);
                }
            }
            context.decode(&batch).unwrap();
            let mut place = 0;
            for (_, positions) in rows {
                place += positions.len();
                all.extend_from_slice(context.logits(place - 1));
            }
        };
        decode(&mut context, &[(0, 0..400)]);
        for position in 400..404 {
            decode(&mut context, &[(0, position..position + 1)]);
        }
        decode(&mut context, &[(0, 404..411)]);
        context.copy(0, 1);
        assert!(context.forget(1, 300));
        decode(&mut context, &[(1, 300..305)]);
        decode(&mut context, &[(2, 0..40)]);
        decode(&mut context, &[(0, 411..413), (1, 305..307), (2, 40..42)]);
        decode(&mut context, &[(0, 413..415), (1, 307..309), (2, 42..44)]);
        assert!(context.forget(0, 390));
        decode(&mut context, &[(0, 390..393), (1, 309..312)]);
        all
    }

    #[test]
    fn logits_are_those_of_the_other_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bespoke-tiny.gguf");
        let stand_in = folder.path().join("stand-in.gguf");
        stand_in::write(Shape::Tiny, 7, &shipped, &stand_in).unwrap();
        for path in [shipped, stand_in] {
            // Not in Q8_0: rounding what goes into a product would make much of a small difference.
            let exact = folder.path().join("f32.gguf");
            export(&import(&path).unwrap(), "exact", folder.path(), &exact, Precision::F32).unwrap();
            let model = load(&exact);
            let given = logits(&model, 1, false);
            let size = given.iter().map(|x| x * x).sum::<f32>() / given.len() as f32;
            // With more threads than heads of keys and values, cells are divided among them.
            for threads in [1, 3] {
                let own = logits(&model, threads, true);
                let off = own.iter().zip(&given).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
                // llama.cpp sums values in f16.
                let relative = (off / given.len() as f32 / size).sqrt();
                assert!(relative < 5e-3, "{}, {threads} threads: {relative}", path.display());
                assert!(off > 0.0, "both kernels are the same: was anything rewritten?");
            }
        }
    }
}
