//! Computes nodes of llama.cpp's graph with our own kernels.
//!
//! The scheduler calls its callback for each node before it computes any. The callback observes
//! none of them (so the graph is not split), but changes some nodes to `GGML_OP_CUSTOM`, which
//! llama.cpp's threads compute by calling back. Only nodes in host memory whose kind and shape a
//! kernel supports are changed; llama.cpp computes the others.

mod attention;
mod felix;
mod placement;
mod product;
mod scratch;
mod work_queue;

use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use crate::engine::kernels::Kernels;
use placement::{Placement, is_host};

pub use felix::{FelixError, Rows, Use};

/// The callback's state. llama.cpp holds pointers into it, so it must not move, and must be dropped
/// after the context.
#[derive(Debug)]
pub struct CustomOps(NonNull<Inner>);

/// llama.cpp's scheduler asks for all nodes of a graph, or of a part of it that one backend
/// computes, and then computes them. This is called a run here.
#[derive(Debug)]
struct Inner {
    /// The kernels in use.
    kernels: Kernels,
    threads: usize,
    placement: Placement,
    template: Template,
    /// One for each node that was rewritten in the longest run so far. Each run uses them again.
    nodes: Vec<NonNull<NodeState>>,
    /// Number of them that this run uses.
    used: usize,
    shared: NonNull<Shared>,
    /// The activations that the last product packs or uses. The next product can use them again.
    packed: *const sys::ggml_tensor,
    /// Felix spokes of the current batch.
    felix: felix::Plan,
    /// Whether llama.cpp computed attention of a single row. It divides the cells among its
    /// threads, so the result depends on their number.
    divided: bool,
}

/// The state that all nodes share. It is a separate allocation, so that no reference to [`Inner`]
/// covers it.
#[derive(Debug, Default)]
struct Shared {
    /// Memory for the node that is being computed. Only one is at a time.
    attention: attention::Scratch,
    felix: felix::Scratch,
    product: product::Scratch,
    /// Whether a node of this run has been computed.
    has_begun: AtomicBool,
}

/// A node's parameters, as ggml keeps them.
type Parameters = [i32; 16];

/// The state of a rewritten node.
#[derive(Debug)]
struct NodeState {
    task: Task,
    /// The node's original parameters.
    given: Parameters,
    shared: NonNull<Shared>,
}

/// What a node computes.
#[derive(Debug)]
enum Task {
    Nothing,
    Attention(attention::Task),
    Felix(felix::Task),
    Product(product::Task),
}

impl CustomOps {
    /// Creates the state for a number of threads.
    pub fn new(threads: usize, kernels: Kernels) -> Self {
        Self(pin(Inner {
            kernels,
            threads: threads.max(1),
            placement: Placement::new(),
            template: Template::new(),
            nodes: Vec::new(),
            used: 0,
            shared: pin(Shared::default()),
            packed: std::ptr::null(),
            felix: felix::Plan::default(),
            divided: false,
        }))
    }

    /// The callback for the scheduler.
    pub fn callback(&self) -> (sys::ggml_backend_sched_eval_callback, *mut c_void) {
        (Some(ask), self.0.as_ptr().cast())
    }

    /// Sets the Felix spokes of the next batches.
    pub fn set_felix(&mut self, uses: &[Use]) {
        self.inner().felix.set(uses);
    }

    /// Must be called before a batch is computed.
    pub fn begin(&mut self, batch: Rows<'_>) {
        let inner = self.inner();
        // The previous batch may have been aborted before any of our nodes was computed.
        inner.begin_run();
        inner.felix.begin(batch);
    }

    /// Must be called after a batch.
    ///
    /// # Errors
    /// A Felix spoke has not acted everywhere, or it is unknown where it has acted.
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
        // SAFETY: created by `pin`; the context that had pointers into it is gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: created by `pin`, and nothing else frees them. The nodes that pointed to them are
        // gone with the context.
        unsafe {
            self.nodes.drain(..).for_each(|state| drop(Box::from_raw(state.as_ptr())));
            drop(Box::from_raw(self.shared.as_ptr()));
        }
    }
}

impl Inner {
    /// Starts a run. Nodes of earlier runs won't be computed any more.
    fn begin_run(&mut self) {
        self.shared().has_begun.store(false, Ordering::Relaxed);
        self.used = 0;
        self.packed = std::ptr::null();
    }

    fn shared(&mut self) -> &mut Shared {
        // SAFETY: `CustomOps` owns it, and nothing is being computed while the scheduler asks for
        // nodes or a batch begins.
        unsafe { self.shared.as_mut() }
    }

    /// The state for the next node that is rewritten.
    fn next_node(&mut self) -> NonNull<NodeState> {
        if self.used == self.nodes.len() {
            let state = NodeState { task: Task::Nothing, given: [0; 16], shared: self.shared };
            self.nodes.push(pin(state));
        }
        self.nodes[self.used]
    }

    /// Rewrites a node that is about to be computed, if a kernel supports it.
    fn see(&mut self, node: &mut sys::ggml_tensor) {
        if *self.shared().has_begun.get_mut() {
            // The scheduler asks for all nodes of a run before the first is computed, so this is
            // the first node of the next run.
            self.begin_run();
        }
        if let Some((op, given)) = self.template.given(node) {
            // A graph that is used again still has our custom nodes. Restore the original node, and
            // decide anew.
            (node.op, node.op_params) = (op, given);
        }
        match node.op {
            sys::GGML_OP_GET_ROWS | sys::GGML_OP_ROPE | sys::GGML_OP_SET_ROWS if self.felix.acts() => {
                return self.felix.see(node);
            }
            sys::GGML_OP_ADD if self.felix.acts() && felix::block(node).is_some() => {}
            sys::GGML_OP_FLASH_ATTN_EXT | sys::GGML_OP_MUL_MAT => {}
            _ => return,
        }
        let state = self.next_node();
        let is_empty = size(node).contains(&0);
        let custom = if is_empty || self.placement.computes(node) {
            self.template.parameters(state.as_ptr().cast(), node)
        } else {
            None
        };
        let task = if custom.is_some() { self.task(node) } else { None };
        if node.op == sys::GGML_OP_FLASH_ATTN_EXT && task.is_none() {
            // SAFETY: sources of a node live as long as the node.
            self.divided |= unsafe { node.src[0].as_ref() }.is_none_or(|queries| size(queries)[1] == 1);
        }
        let (Some(task), Some(custom)) = (task, custom) else { return };
        // SAFETY: nothing is being computed, and no other node of this run has this state.
        let state = unsafe { &mut *state.as_ptr() };
        (state.task, state.given) = (task, node.op_params);
        (node.op, node.op_params) = (sys::GGML_OP_CUSTOM, custom);
        // Only rewritten nodes take a state. The nodes of adapters, of which there may be many,
        // take none.
        self.used += 1;
    }

    /// The task for a node, if a kernel supports it.
    fn task(&mut self, node: &sys::ggml_tensor) -> Option<Task> {
        let (threads, kernels) = (self.threads, self.kernels);
        // SAFETY: `CustomOps` owns it, and nothing is being computed while the scheduler asks for
        // nodes.
        let shared = unsafe { self.shared.as_mut() };
        match node.op {
            sys::GGML_OP_FLASH_ATTN_EXT => {
                attention::Task::of(node, threads, kernels.attention, &mut shared.attention)
                    .map(Task::Attention)
            }
            sys::GGML_OP_MUL_MAT => {
                product::Task::of(node, threads, kernels.product, &mut shared.product, &mut self.packed)
                    .map(Task::Product)
            }
            sys::GGML_OP_ADD => {
                felix::Task::of(node, threads, kernels.felix, &mut self.felix, &mut shared.felix)
                    .map(Task::Felix)
            }
            _ => None,
        }
    }
}

impl NodeState {
    /// Takes part in computing the node.
    ///
    /// # Safety
    /// The node is the one that the task was made from. It is being computed, and no other node is.
    unsafe fn work(&self, node: &sys::ggml_tensor) {
        // SAFETY: `CustomOps` owns the shared state and outlives the context. While nodes are being
        // computed, nothing has a mutable reference to it.
        let shared = unsafe { self.shared.as_ref() };
        if !shared.has_begun.load(Ordering::Relaxed) {
            // The thread that asks for nodes also takes part in computing each of them, so it sees
            // this write.
            shared.has_begun.store(true, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe {
            match &self.task {
                Task::Nothing => {}
                Task::Attention(task) => task.work(node, &self.given, &shared.attention),
                Task::Felix(task) => task.work(node, &shared.felix),
                Task::Product(task) => task.work(node, &shared.product),
            }
        }
    }
}

/// Moves a value to the heap, where its address doesn't change.
fn pin<T>(value: T) -> NonNull<T> {
    NonNull::from(Box::leak(Box::new(value)))
}

/// Elements in each dimension.
fn size(tensor: &sys::ggml_tensor) -> [usize; 4] {
    tensor.ne.map(|n| usize::try_from(n).unwrap_or(0))
}

/// An address that no object has.
const MARK: usize = 0x5EED_BE5F_0C0D_E5A1_u64 as usize;

/// The parameters of a custom node as ggml makes it, and the position of the callback's data among
/// them. ggml uses nothing after the data, so a rewritten node keeps its original operation and
/// parameters there, however often its graph is used again.
#[derive(Debug)]
struct Template {
    parameters: Parameters,
    place: usize,
}

/// Number of words of an address.
const WORDS: usize = size_of::<usize>() / 4;

impl Template {
    fn new() -> Self {
        // ggml's parameters have uninitialised padding between their fields, so look for the mark
        // instead of comparing two nodes.
        let words: [i32; WORDS] = bytemuck::cast(MARK);
        let parameters = custom_parameters(null_mut::<c_void>().with_addr(MARK));
        let mut places = parameters.windows(WORDS).enumerate();
        let place = places.find(|(_, there)| *there == words).map(|(place, _)| place);
        let place = place.expect("a custom node knows its data");
        let rest = &parameters[place + WORDS..];
        assert!(rest.len() > 1 && rest.iter().all(|&word| word == 0), "nothing follows a custom node's data");
        Self { parameters, place }
    }

    /// Parameters of a custom node that calls [`compute`] with `data` in place of another node;
    /// `None` if they have no room for the other node's parameters.
    fn parameters(&self, data: *mut c_void, node: &sys::ggml_tensor) -> Option<Parameters> {
        let mut parameters = self.parameters;
        let words: [i32; WORDS] = bytemuck::cast(data.expose_provenance());
        parameters[self.place..][..WORDS].copy_from_slice(&words);
        let (op, kept) = parameters[self.place + WORDS..].split_first_mut()?;
        let (given, rest) = node.op_params.split_at(kept.len());
        *op = node.op.cast_signed();
        kept.copy_from_slice(given);
        rest.iter().all(|&word| word == 0).then_some(parameters)
    }

    /// The original operation and parameters of a node that was rewritten; `None` for others.
    fn given(&self, node: &sys::ggml_tensor) -> Option<(sys::ggml_op, Parameters)> {
        if node.op != sys::GGML_OP_CUSTOM || node.op_params[..self.place] != self.parameters[..self.place] {
            return None;
        }
        let (op, kept) = node.op_params[self.place + WORDS..].split_first()?;
        let mut given = [0; 16];
        given[..kept.len()].copy_from_slice(kept);
        Some((op.cast_unsigned(), given))
    }
}

/// Parameters of a custom node, as ggml writes them.
fn custom_parameters(data: *mut c_void) -> Parameters {
    // SAFETY: the context lives until it is freed below, and has room for both tensors. They get no
    // memory for data.
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

/// Called for each node before the graph is computed. Observes none.
unsafe extern "C" fn ask(node: *mut sys::ggml_tensor, asks: bool, data: *mut c_void) -> bool {
    if asks && !node.is_null() {
        // SAFETY: the data belongs to the `CustomOps`, which outlives the context. Nothing is being
        // computed while the scheduler asks for nodes, and nothing else has a reference to the data
        // or the node meanwhile.
        unsafe { (*data.cast::<Inner>()).see(&mut *node) };
    }
    false
}

/// Called by each of llama.cpp's threads for a rewritten node.
unsafe extern "C" fn compute(
    node: *mut sys::ggml_tensor,
    _thread: c_int,
    _threads: c_int,
    data: *mut c_void,
) {
    // SAFETY: the data is the state of the node, which `CustomOps` owns. `see` has set its task for
    // this run, and gives it to no other node before the run is over. ggml computes nodes one after
    // the other: all threads finish a node before any begins the next.
    unsafe { (*data.cast::<NodeState>()).work(&*node) };
}

#[cfg(test)]
mod graph_tests;
#[cfg(test)]
mod tests;
