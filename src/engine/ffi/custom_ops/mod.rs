//! Nodes of llama.cpp's graph that are computed here instead.
//!
//! The scheduler asks its callback for each node before it computes any; the callback wants none of them (so the graph is
//! not split), but makes some nodes into nodes of `GGML_OP_CUSTOM`, which llama.cpp's own threads compute by calling
//! back. Only nodes in host memory are touched, and only those whose kinds and shapes a kernel covers; the rest stays
//! llama.cpp's.

mod attention;
mod felix;
mod huge_pages;
mod product;
mod work_queue;

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null_mut};

use llama_cpp_sys_2 as sys;

use crate::engine::kernels::Kernels;

pub use felix::{FelixError, Rows, Use};

/// Nodes of a layer that may be rewritten, at most: projections of every kind of mixer, feed-forward, attention.
const NODES: usize = 16;

/// What the callback knows; llama.cpp holds pointers into it, so it stays where it is until it is dropped behind the
/// context.
#[derive(Debug)]
pub struct CustomOps(NonNull<Inner>);

#[derive(Debug)]
struct Inner {
    /// First one for the end of each layer, which a Felix spoke may or may not stand behind each time that a graph is
    /// computed; then those that other nodes take in turn.
    slots: Vec<Slot>,
    layers: usize,
    /// What is computed here.
    kernels: Kernels,
    /// A slot by the parameters of its node.
    places: HashMap<Parameters, usize>,
    next: usize,
    threads: usize,
    /// Memory for the node that is computed; there is one at a time.
    scratch: Scratch,
    /// Buffers of weights that have been met.
    weights: Vec<*const sys::ggml_backend_buffer>,
    /// The activations that will be packed when the node that is asked for next is computed.
    packed: *const sys::ggml_tensor,
    /// Felix spokes of the batch that is computed.
    felix: felix::Plan,
    /// Whether attention of a single row was left to llama.cpp, which divides the cells among its threads.
    divided: bool,
}

#[derive(Debug, Default)]
struct Scratch {
    attention: attention::Scratch,
    felix: felix::Scratch,
    product: product::Scratch,
}

/// A node's parameters, as ggml keeps them.
type Parameters = [i32; 16];

/// One node and its state.
#[derive(Debug)]
struct Slot {
    /// Parameters of a custom node that calls [`compute`] with this slot.
    params: Parameters,
    /// The node as llama.cpp made it.
    given: (sys::ggml_op, Parameters),
    task: Task,
    scratch: *const Scratch,
}

/// What is to be computed.
#[derive(Debug)]
enum Task {
    Nothing,
    Attention(attention::Task),
    Felix(felix::Task),
    Product(product::Task),
}

impl CustomOps {
    /// For a model with so many layers, computed by so many threads with these kernels.
    pub fn new(layers: usize, threads: usize, kernels: Kernels) -> Self {
        // The graph that is being built and the one before it have nodes.
        let count = layers + 2 * NODES * (layers + 1);
        let inner = Box::into_raw(Box::new(Inner {
            slots: Vec::with_capacity(count),
            places: HashMap::with_capacity(count),
            layers,
            kernels,
            next: layers,
            threads: threads.max(1),
            scratch: Scratch::default(),
            weights: Vec::new(),
            packed: std::ptr::null(),
            felix: felix::Plan::default(),
            divided: false,
        }));
        let template = Template::new();
        // SAFETY: just made, and nobody else has it. The slots don't move: there is room for all of them.
        unsafe {
            #[allow(clippy::needless_borrow, reason = "behind a raw pointer a borrow should be seen")]
            for index in 0..count {
                let scratch = &raw const (*inner).scratch;
                let given = (sys::GGML_OP_NONE, [0; 16]);
                (&mut (*inner).slots).push(Slot { params: [0; 16], given, task: Task::Nothing, scratch });
                let slot = (*inner).slots.as_mut_ptr().add(index);
                (*slot).params = template.parameters(slot.cast());
                (&mut (*inner).places).insert((*slot).params, index);
            }
            Self(NonNull::new_unchecked(inner))
        }
    }

    /// What to give the scheduler.
    pub fn callback(&self) -> (sys::ggml_backend_sched_eval_callback, *mut c_void) {
        (Some(ask), self.0.as_ptr().cast())
    }

    /// Which Felix spokes the next batches are computed with.
    pub fn set_felix(&mut self, uses: &[Use]) {
        self.inner().felix.set(uses);
    }

    /// To be called before a batch is computed.
    pub fn begin(&mut self, batch: Rows<'_>) {
        let inner = self.inner();
        inner.packed = std::ptr::null();
        inner.felix.begin(batch);
    }

    /// To be called behind a batch.
    ///
    /// # Errors
    /// A Felix spoke has not acted everywhere.
    pub fn end(&mut self) -> Result<(), FelixError> {
        self.inner().felix.end()
    }

    /// Whether results so far depended on the number of threads that computed them.
    pub fn counts_threads(&self) -> bool {
        // SAFETY: `self` owns it, and nothing is being computed.
        unsafe { self.0.as_ref() }.divided
    }

    fn inner(&mut self) -> &mut Inner {
        // SAFETY: `self` owns it, and nothing is being computed.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for CustomOps {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`; the context that had pointers into it is gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Inner {
    /// Looks at a node that is about to be computed.
    fn see(&mut self, node: &mut sys::ggml_tensor) {
        let index = match node.op {
            // A graph that is used again has the nodes that it was given.
            sys::GGML_OP_CUSTOM => match self.places.get(&node.op_params) {
                Some(&index) => index,
                None => return,
            },
            sys::GGML_OP_GET_ROWS if self.felix.acts() => return self.felix.see(node),
            sys::GGML_OP_FLASH_ATTN_EXT | sys::GGML_OP_MUL_MAT => self.next,
            sys::GGML_OP_ADD if self.felix.acts() => match felix::block(node) {
                Some(block) if (block as usize) < self.layers => block as usize,
                _ => return,
            },
            _ => return,
        };
        let slot = &mut self.slots[index];
        if node.op == sys::GGML_OP_CUSTOM {
            // As it was, to be judged anew.
            (node.op, node.op_params) = slot.given;
        }
        let (kernels, scratch) = (self.kernels, &mut self.scratch);
        let task = match node.op {
            sys::GGML_OP_FLASH_ATTN_EXT => {
                attention::Task::of(node, self.threads, kernels.attention, &mut scratch.attention)
                    .map(Task::Attention)
            }
            sys::GGML_OP_MUL_MAT => {
                product::Task::of(node, self.threads, kernels.product, &mut scratch.product, &mut self.packed)
                    .map(Task::Product)
            }
            sys::GGML_OP_ADD => {
                felix::Task::of(node, self.threads, kernels.felix, &mut self.felix, &mut scratch.felix)
                    .map(Task::Felix)
            }
            _ => None,
        };
        if node.op == sys::GGML_OP_FLASH_ATTN_EXT && task.is_none() {
            // SAFETY: sources of a node live as long as the node.
            self.divided |= unsafe { node.src[0].as_ref() }.is_none_or(|queries| size(queries)[1] == 1);
        }
        if let Some(task) = task {
            if matches!(task, Task::Product(_)) {
                let buffer = product::Task::weights(node);
                if !buffer.is_null() && !self.weights.contains(&buffer.cast_const()) {
                    self.weights.push(buffer);
                    huge_pages::make_huge(buffer);
                }
            }
            slot.given = (node.op, node.op_params);
            slot.task = task;
            node.op = sys::GGML_OP_CUSTOM;
            node.op_params = slot.params;
            if index == self.next {
                // Only nodes that are rewritten take a slot: those of adapters, of which there may be many, take none.
                self.next = if index + 1 < self.slots.len() { index + 1 } else { self.layers };
            }
        }
    }
}

impl Slot {
    /// Takes part in computing the node.
    ///
    /// # Safety
    /// The node is the one that the task was made of, and is being computed.
    unsafe fn work(&self, node: &sys::ggml_tensor) {
        // SAFETY: the caller's promise; the scratch memory lives as long as the slot.
        unsafe {
            match &self.task {
                Task::Nothing => {}
                Task::Attention(task) => task.work(node, &self.given.1, &(*self.scratch).attention),
                Task::Felix(task) => task.work(node, &(*self.scratch).felix),
                Task::Product(task) => task.work(node, &(*self.scratch).product),
            }
        }
    }
}

/// Makes room for so many elements in scratch memory; it never shrinks.
fn make_room<T: Default>(buffer: &mut Vec<T>, length: usize) {
    buffer.resize_with(buffer.len().max(length), T::default);
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

/// Elements in each dimension.
fn size(tensor: &sys::ggml_tensor) -> [usize; 4] {
    tensor.ne.map(|n| usize::try_from(n).unwrap_or(0))
}

/// An address that nothing has.
const MARK: usize = 0x5EED_BE5F_0C0D_E5A1_u64 as usize;

/// A custom node as ggml makes it, and where among its parameters the data of its function is.
struct Template {
    parameters: Parameters,
    place: usize,
}

impl Template {
    fn new() -> Self {
        // Between the fields of ggml's parameters lie bytes that nobody has set: the data is where the mark is, and not where two
        // of them differ.
        let words: [i32; size_of::<usize>() / 4] = bytemuck::cast(MARK);
        let parameters = custom_parameters(null_mut::<c_void>().with_addr(MARK));
        let mut places = parameters.windows(words.len()).enumerate();
        let place = places.find(|(_, there)| *there == words).map(|(place, _)| place);
        Self { parameters, place: place.expect("a custom node knows its data") }
    }

    /// Parameters of a custom node that calls [`compute`] with `data`.
    fn parameters(&self, data: *mut c_void) -> Parameters {
        let mut parameters = self.parameters;
        let words: [i32; size_of::<usize>() / 4] = bytemuck::cast(data.expose_provenance());
        parameters[self.place..][..words.len()].copy_from_slice(&words);
        parameters
    }
}

/// Parameters of a custom node, as ggml itself writes them.
fn custom_parameters(data: *mut c_void) -> Parameters {
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
        // SAFETY: the data is the rewriter's, which outlives the context; nothing is computed while nodes are asked for.
        unsafe { (*data.cast::<Inner>()).see(&mut *node) };
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
    // SAFETY: the data is the node's slot, which the rewriter owns, and `see` has set its task for this computation.
    unsafe { (*data.cast::<Slot>()).work(&*node) };
}

#[cfg(test)]
mod tests;
