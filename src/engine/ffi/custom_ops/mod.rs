//! Nodes of llama.cpp's graph that are computed here instead.
//!
//! The scheduler asks its callback for each node before it computes any; the callback wants none of
//! them (so the graph is not split), but makes some nodes into nodes of `GGML_OP_CUSTOM`, which
//! llama.cpp's own threads compute by calling back. Only nodes in host memory are touched, and only
//! those whose kinds and shapes a kernel covers; the rest stays llama.cpp's.

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

/// What the callback knows; llama.cpp holds pointers into it, so it stays where it is until it is
/// dropped after the context.
#[derive(Debug)]
pub struct CustomOps(NonNull<Inner>);

/// llama.cpp's scheduler asks for all nodes of a graph, or of a part of it that one backend
/// computes, and then has them computed: that is a run here.
#[derive(Debug)]
struct Inner {
    /// What is computed here.
    kernels: Kernels,
    threads: usize,
    placement: Placement,
    template: Template,
    /// One for each node that was rewritten in the longest run so far; nodes of the next run have
    /// them again.
    slots: Vec<NonNull<Slot>>,
    /// How many of them nodes of this run have.
    taken: usize,
    shared: NonNull<Shared>,
    /// The activations that will be packed when the node that is asked for next is computed.
    packed: *const sys::ggml_tensor,
    /// Felix spokes of the batch that is computed.
    felix: felix::Plan,
    /// Whether attention of a single row was left to llama.cpp, which divides the cells among its
    /// threads.
    divided: bool,
}

/// What slots need of the rest. It is an allocation of its own, so that no reference to the rest
/// covers it.
#[derive(Debug, Default)]
struct Shared {
    /// Memory for the node that is computed; there is one at a time.
    attention: attention::Scratch,
    felix: felix::Scratch,
    product: product::Scratch,
    /// Whether a node of this run has been computed.
    has_begun: AtomicBool,
}

/// A node's parameters, as ggml keeps them.
type Parameters = [i32; 16];

/// One node and its state.
#[derive(Debug)]
struct Slot {
    task: Task,
    /// The parameters that llama.cpp gave the node.
    given: Parameters,
    shared: NonNull<Shared>,
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
    /// For so many threads and these kernels.
    pub fn new(threads: usize, kernels: Kernels) -> Self {
        Self(pin(Inner {
            kernels,
            threads: threads.max(1),
            placement: Placement::new(),
            template: Template::new(),
            slots: Vec::new(),
            taken: 0,
            shared: pin(Shared::default()),
            packed: std::ptr::null(),
            felix: felix::Plan::default(),
            divided: false,
        }))
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
        // The batch before may have been given up before any of our nodes was computed.
        inner.begin_run();
        inner.felix.begin(batch);
    }

    /// To be called after a batch.
    ///
    /// # Errors
    /// A Felix spoke has not acted everywhere, or no one can say where.
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
        // SAFETY: made by `pin`; the context that had pointers into it is gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: made by `pin`, and nothing else frees them; nodes that pointed to them are gone
        // with the context.
        unsafe {
            self.slots.drain(..).for_each(|slot| drop(Box::from_raw(slot.as_ptr())));
            drop(Box::from_raw(self.shared.as_ptr()));
        }
    }
}

impl Inner {
    /// Nothing of the nodes that were asked for so far will be computed any more.
    fn begin_run(&mut self) {
        self.shared().has_begun.store(false, Ordering::Relaxed);
        self.taken = 0;
        self.packed = std::ptr::null();
    }

    fn shared(&mut self) -> &mut Shared {
        // SAFETY: `CustomOps` owns it, and nothing is being computed while nodes are asked for or a
        // batch begins.
        unsafe { self.shared.as_mut() }
    }

    /// The slot of the next node that is rewritten.
    fn slot(&mut self) -> NonNull<Slot> {
        if self.taken == self.slots.len() {
            let slot = Slot { task: Task::Nothing, given: [0; 16], shared: self.shared };
            self.slots.push(pin(slot));
        }
        self.slots[self.taken]
    }

    /// Looks at a node that is about to be computed.
    fn see(&mut self, node: &mut sys::ggml_tensor) {
        if *self.shared().has_begun.get_mut() {
            // All nodes of a run are asked for before the first is computed, so this is the first
            // of another.
            self.begin_run();
        }
        if let Some((op, given)) = self.template.given(node) {
            // A graph that is used again has the nodes that were made of its own. As it was, to be
            // judged anew.
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
        let slot = self.slot();
        let is_empty = size(node).contains(&0);
        let custom = if is_empty || self.placement.computes(node) {
            self.template.parameters(slot.as_ptr().cast(), node)
        } else {
            None
        };
        let task = if custom.is_some() { self.task(node) } else { None };
        if node.op == sys::GGML_OP_FLASH_ATTN_EXT && task.is_none() {
            // SAFETY: sources of a node live as long as the node.
            self.divided |= unsafe { node.src[0].as_ref() }.is_none_or(|queries| size(queries)[1] == 1);
        }
        let (Some(task), Some(custom)) = (task, custom) else { return };
        // SAFETY: nothing is being computed, and no other node of this run has the slot.
        let slot = unsafe { &mut *slot.as_ptr() };
        (slot.task, slot.given) = (task, node.op_params);
        (node.op, node.op_params) = (sys::GGML_OP_CUSTOM, custom);
        // Only nodes that are rewritten take a slot: those of adapters, of which there may be many,
        // take none.
        self.taken += 1;
    }

    /// What is to be computed for a node, if a kernel covers it.
    fn task(&mut self, node: &sys::ggml_tensor) -> Option<Task> {
        let (threads, kernels) = (self.threads, self.kernels);
        // SAFETY: `CustomOps` owns it, and nothing is being computed while nodes are asked for.
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

impl Slot {
    /// Takes part in computing the node.
    ///
    /// # Safety
    /// The node is the one that the task was made of, and is being computed; no other node is.
    unsafe fn work(&self, node: &sys::ggml_tensor) {
        // SAFETY: `CustomOps` owns what slots share and outlives the context; while nodes are
        // computed nothing has a mutable reference to it.
        let shared = unsafe { self.shared.as_ref() };
        if !shared.has_begun.load(Ordering::Relaxed) {
            // The thread that asks for nodes takes part in each of them, so it sees this.
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

/// Puts a value where it stays, for pointers to it.
fn pin<T>(value: T) -> NonNull<T> {
    NonNull::from(Box::leak(Box::new(value)))
}

/// Elements in each dimension.
fn size(tensor: &sys::ggml_tensor) -> [usize; 4] {
    tensor.ne.map(|n| usize::try_from(n).unwrap_or(0))
}

/// An address that nothing has.
const MARK: usize = 0x5EED_BE5F_0C0D_E5A1_u64 as usize;

/// A custom node as ggml makes it, and where among its parameters the data of its function is.
/// Nothing follows that, so there a node of ours keeps what it was: however often its graph is used
/// again, it says so itself.
#[derive(Debug)]
struct Template {
    parameters: Parameters,
    place: usize,
}

/// Words of an address.
const WORDS: usize = size_of::<usize>() / 4;

impl Template {
    fn new() -> Self {
        // Between the fields of ggml's parameters lie bytes that nobody has set: the data is where
        // the mark is, and not where two of them differ.
        let words: [i32; WORDS] = bytemuck::cast(MARK);
        let parameters = custom_parameters(null_mut::<c_void>().with_addr(MARK));
        let mut places = parameters.windows(WORDS).enumerate();
        let place = places.find(|(_, there)| *there == words).map(|(place, _)| place);
        let place = place.expect("a custom node knows its data");
        let rest = &parameters[place + WORDS..];
        assert!(rest.len() > 1 && rest.iter().all(|&word| word == 0), "nothing follows a custom node's data");
        Self { parameters, place }
    }

    /// Parameters of a custom node that calls [`compute`] with `data`, made of another node; none
    /// if they can't keep what that one was.
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

    /// What a node was before it was made into one that calls [`compute`], if it was.
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

/// Parameters of a custom node, as ggml itself writes them.
fn custom_parameters(data: *mut c_void) -> Parameters {
    // SAFETY: the context lives until it is freed below, and has room for both tensors; no memory
    // is given to them.
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
        // SAFETY: the data is the `CustomOps`', which outlives the context; nothing is computed
        // while nodes are asked for, and nothing else refers to it or to the node meanwhile.
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
    // SAFETY: the data is the node's slot, which `CustomOps` owns. `see` has set its task for this
    // computation, and gives it to no other node before this run is over. ggml computes nodes one
    // after the other: all threads end one before any begins the next.
    unsafe { (*data.cast::<Slot>()).work(&*node) };
}

#[cfg(test)]
mod graph_tests;
#[cfg(test)]
mod tests;
