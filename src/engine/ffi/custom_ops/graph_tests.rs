//! Graphs built by hand: which nodes are rewritten, and what happens to a graph that is computed
//! again.

use std::ffi::CString;
use std::rc::Rc;

use super::*;
use crate::engine::kernels::felix::Weights;
use crate::engine::kernels::product::{BLOCK, ROWS};

/// Tensors without a model.
struct Graph {
    context: *mut sys::ggml_context,
    buffers: Vec<sys::ggml_backend_buffer_t>,
    nodes: Vec<*mut sys::ggml_tensor>,
    /// Memory of a buffer that was created from it.
    memory: Vec<u64>,
}

impl Graph {
    fn new() -> Self {
        crate::engine::backend::backend();
        let params = sys::ggml_init_params { mem_size: 1 << 20, mem_buffer: null_mut(), no_alloc: true };
        // SAFETY: freed when the graph is dropped.
        let context = unsafe { sys::ggml_init(params) };
        assert!(!context.is_null());
        Self { context, buffers: Vec::new(), nodes: Vec::new(), memory: Vec::new() }
    }

    fn tensor(&self, kind: sys::ggml_type, [a, b, c, d]: [i64; 4]) -> *mut sys::ggml_tensor {
        // SAFETY: the context lives, and has room for several thousand tensors.
        unsafe { sys::ggml_new_tensor_4d(self.context, kind, a, b, c, d) }
    }

    fn named(&self, name: &str, kind: sys::ggml_type, size: [i64; 4]) -> *mut sys::ggml_tensor {
        let (tensor, name) = (self.tensor(kind, size), CString::new(name).unwrap());
        // SAFETY: the tensor was just created, and the name is copied.
        unsafe { sys::ggml_set_name(tensor, name.as_ptr()) }
    }

    /// Allocates all tensors in CPU memory.
    fn allocate(&mut self) {
        // SAFETY: the context lives; the buffer is freed after it was used.
        let buffer = unsafe {
            sys::ggml_backend_alloc_ctx_tensors_from_buft(self.context, sys::ggml_backend_cpu_buffer_type())
        };
        assert!(!buffer.is_null());
        self.buffers.push(buffer);
    }

    /// A product of `ROWS` rows of weights with a column, in CPU memory.
    fn product(&mut self, weights: *mut sys::ggml_tensor, x: *mut sys::ggml_tensor) {
        // SAFETY: the context and both tensors live.
        self.nodes.push(unsafe { sys::ggml_mul_mat(self.context, weights, x) });
    }

    /// Asks for all nodes, as the scheduler does.
    fn ask(&self, ops: &CustomOps) {
        let (callback, data) = ops.callback();
        for &node in &self.nodes {
            // SAFETY: nodes and ops live, and nothing is being computed.
            assert!(!unsafe { callback.unwrap()(node, true, data) }, "the graph is not split");
        }
    }

    /// Computes all nodes by llama.cpp with two threads.
    fn compute(&self) {
        // SAFETY: the nodes have memory, and only this function uses the graph and the backend.
        unsafe {
            let cpu = sys::ggml_backend_cpu_init();
            sys::ggml_backend_cpu_set_n_threads(cpu, 2);
            let graph = sys::ggml_new_graph(self.context);
            self.nodes.iter().for_each(|&node| sys::ggml_build_forward_expand(graph, node));
            assert_eq!(sys::ggml_backend_graph_compute(cpu, graph), sys::GGML_STATUS_SUCCESS);
            sys::ggml_backend_free(cpu);
        }
    }

    fn kinds(&self) -> Vec<sys::ggml_op> {
        // SAFETY: nodes live.
        self.nodes.iter().map(|&node| unsafe { (*node).op }).collect()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nothing uses them any more.
        unsafe {
            self.buffers.drain(..).for_each(|buffer| sys::ggml_backend_buffer_free(buffer));
            sys::ggml_free(self.context);
        }
    }
}

/// Writes a tensor.
fn put<T: bytemuck::Pod>(tensor: *mut sys::ggml_tensor, values: &[T]) {
    // SAFETY: the tensor has memory of this size.
    unsafe {
        assert_eq!(sys::ggml_nbytes(tensor), size_of_val(values));
        sys::ggml_backend_tensor_set(tensor, values.as_ptr().cast(), 0, size_of_val(values));
    }
}

/// Reads a tensor of floats.
fn floats(tensor: *mut sys::ggml_tensor) -> Vec<f32> {
    // SAFETY: the tensor has memory, is of this type and contiguous.
    unsafe {
        let mut values = vec![0f32; sys::ggml_nbytes(tensor) / 4];
        sys::ggml_backend_tensor_get(tensor, values.as_mut_ptr().cast(), 0, 4 * values.len());
        values
    }
}

const DEPTH: usize = 2 * BLOCK;

/// Weights of `ROWS` rows, and columns, all of the same length.
fn products(graph: &Graph, columns: usize) -> (*mut sys::ggml_tensor, Vec<*mut sys::ggml_tensor>) {
    let weights = graph.tensor(sys::GGML_TYPE_Q8_0, [DEPTH as i64, ROWS as i64, 1, 1]);
    let column = |_| graph.tensor(sys::GGML_TYPE_F32, [DEPTH as i64, 1, 1, 1]);
    (weights, (0..columns).map(column).collect())
}

/// Weights that differ from row to row.
fn put_weights(weights: *mut sys::ggml_tensor) {
    let block = |at: usize| {
        let mut block = [0u8; 34];
        block[..2].copy_from_slice(&half::f16::from_f32(0.01).to_le_bytes());
        block[2..].iter_mut().enumerate().for_each(|(i, byte)| *byte = (7 * at + 3 * i) as u8);
        block
    };
    put(weights, (0..2 * ROWS).flat_map(block).collect::<Vec<u8>>().as_slice());
}

fn column(scale: f32) -> Vec<f32> {
    crate::engine::kernels::numbers(4).map(|x| x * scale).take(DEPTH).collect()
}

/// This processor's kernels. All of them need at least AVX2.
fn ops() -> CustomOps {
    let kernels = Kernels::best();
    assert!(kernels.product.is_some() && kernels.attention.is_some(), "{kernels}");
    CustomOps::new(2, kernels)
}

fn times(values: &[f32], factor: f32) -> Vec<f32> {
    values.iter().map(|x| x * factor).collect()
}

#[test]
fn each_node_has_a_task_of_its_own_however_many_there_are_and_however_often_they_are_computed() {
    const NODES: usize = 300;
    let mut graph = Graph::new();
    let (weights, columns) = products(&graph, NODES);
    for &x in &columns {
        graph.product(weights, x);
    }
    graph.allocate();
    put_weights(weights);
    let ops = ops();
    // Powers of two, so that results equal those of another column bit by bit.
    let scale = |node: usize, turn: usize| f32::from(1u8 << ((node + turn) % 7));
    for turn in 0..3 {
        (0..NODES).for_each(|node| put(columns[node], &column(scale(node, turn))));
        graph.ask(&ops);
        assert_eq!(graph.kinds(), [sys::GGML_OP_CUSTOM; NODES]);
        graph.compute();
        let first = times(&floats(graph.nodes[0]), 1.0 / scale(0, turn));
        assert!(first.iter().any(|&x| x.abs() > 0.1), "{first:?}");
        for node in 0..NODES {
            assert_eq!(floats(graph.nodes[node]), times(&first, scale(node, turn)), "{node}, {turn}");
        }
    }
    // SAFETY: nothing is being computed.
    assert_eq!(unsafe { ops.0.as_ref() }.nodes.len(), NODES, "states are used again by the next run");
}

#[test]
fn a_node_that_is_judged_again_is_what_llama_cpp_made_it() {
    let mut graph = Graph::new();
    let q = graph.tensor(sys::GGML_TYPE_F32, [64, 1, 4, 1]);
    let [k, v] = [(); 2].map(|()| graph.tensor(sys::GGML_TYPE_F16, [64, 32, 2, 1]));
    let mask = graph.tensor(sys::GGML_TYPE_F16, [32, 1, 1, 1]);
    // SAFETY: the context and all tensors live.
    let node = unsafe { sys::ggml_flash_attn_ext(graph.context, q, k, v, mask, 0.125, 0.0, 0.0) };
    graph.nodes.push(node);
    graph.allocate();
    // SAFETY: the tensors live, and nothing is being computed.
    unsafe {
        let given = (*node).op_params;
        assert_eq!(given[0], 0.125f32.to_bits().cast_signed());
        let mut ops = ops();
        for _ in 0..3 {
            graph.ask(&ops);
            assert_eq!(graph.kinds(), [sys::GGML_OP_CUSTOM]);
            let inner = ops.inner();
            assert_eq!(inner.template.given(&*node), Some((sys::GGML_OP_FLASH_ATTN_EXT, given)));
        }
        // A custom node has no room for these parameters.
        (*node).op = sys::GGML_OP_FLASH_ATTN_EXT;
        (*node).op_params = given;
        (*node).op_params[15] = 1;
        graph.ask(&ops);
        assert_eq!(graph.kinds(), [sys::GGML_OP_FLASH_ATTN_EXT]);
        (*node).op_params = given;
        // There are no cells.
        for tensor in [k, v] {
            (*tensor).ne[1] = 0;
        }
        graph.ask(&ops);
        assert_eq!(graph.kinds(), [sys::GGML_OP_FLASH_ATTN_EXT], "no cells");
    }
}

#[test]
fn activations_are_packed_once_in_a_graph_and_again_in_the_next() {
    let mut graph = Graph::new();
    let (weights, columns) = products(&graph, 1);
    graph.product(weights, columns[0]);
    graph.product(weights, columns[0]);
    graph.allocate();
    put_weights(weights);
    let mut ops = ops();
    let mut results = Vec::new();
    // A batch in four graphs, which differ only in their inputs.
    for scale in [1.0, 4.0, 0.5, 1.0] {
        put(columns[0], &column(scale));
        graph.ask(&ops);
        let packs = |state: &NonNull<NodeState>| {
            // SAFETY: nothing is being computed.
            matches!(unsafe { &state.as_ref().task }, Task::Product(task) if task.packs())
        };
        assert_eq!(ops.inner().nodes.iter().map(packs).collect::<Vec<_>>(), [true, false]);
        graph.compute();
        let [first, second] = [0, 1].map(|node| floats(graph.nodes[node]));
        assert_eq!(first, second);
        results.push(times(&first, 1.0 / scale));
    }
    assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
    // After a run that was aborted before anything was computed, nothing is packed.
    graph.ask(&ops);
    ops.begin(Rows { tokens: &[], positions: &[], sequences: &[], logits: &[] });
    put(columns[0], &column(2.0));
    graph.ask(&ops);
    graph.compute();
    assert_eq!(floats(graph.nodes[0]), times(&results[0], 2.0));
}

#[test]
fn only_nodes_of_the_cpu_are_rewritten_not_all_that_are_in_host_memory() {
    let mut graph = Graph::new();
    let (weights, columns) = products(&graph, 1);
    graph.product(weights, columns[0]);
    graph.allocate();
    let node = graph.nodes[0];
    graph.memory = vec![0; 1 << 10];
    let start = graph.memory.as_mut_ptr();
    // SAFETY: the graph owns the memory, which outlives the buffer, and the node is in no other
    // graph.
    unsafe {
        let start = start.byte_add(start.align_offset(64).min(8) * 8);
        let other = sys::ggml_backend_cpu_buffer_from_ptr(start.cast(), 1 << 10);
        graph.buffers.push(other);
        let (buffer, data) = ((*node).buffer, (*node).data);
        ((*node).buffer, (*node).data) = (other, start.cast());
        assert!(is_host(&*node));
        let mut ops = ops();
        graph.ask(&ops);
        assert_eq!(graph.kinds(), [sys::GGML_OP_MUL_MAT], "results of the CPU's backend are elsewhere");
        ((*node).buffer, (*node).data) = (buffer, data);
        graph.ask(&ops);
        assert_eq!(graph.kinds(), [sys::GGML_OP_CUSTOM]);
        // Another backend uses buffers of the same type.
        ops.inner().placement = Placement::shared();
        graph.ask(&ops);
        assert_eq!(graph.kinds(), [sys::GGML_OP_MUL_MAT]);
    }
}

/// Two sequences of two tokens each, as a graph shows them.
struct Said {
    tokens: [i32; 4],
    positions: Option<[i32; 4]>,
    streams: Option<[i64; 4]>,
}

/// The result of a batch of two sequences with different spokes, if the graph shows this.
fn judged(tokens: [i32; 4], said: Said) -> Result<(), FelixError> {
    judged_with(tokens, said, &[spoke(), spoke()])
}

/// A spoke without layers, so that no block is missed.
fn spoke() -> Rc<Weights> {
    Rc::new(Weights { width: 8, eps: 1e-5, layers: [].into() })
}

fn judged_with(tokens: [i32; 4], said: Said, spokes: &[Rc<Weights>; 2]) -> Result<(), FelixError> {
    const PLACES: i64 = 16;
    let mut graph = Graph::new();
    let table = graph.named("token_embd.weight", sys::GGML_TYPE_F32, [8, 10, 1, 1]);
    let ids = graph.named("inp_tokens", sys::GGML_TYPE_I32, [4, 1, 1, 1]);
    let positions = graph.named("inp_pos", sys::GGML_TYPE_I32, [4, 1, 1, 1]);
    let cache = graph.named("cache_k_l0", sys::GGML_TYPE_F16, [8, PLACES, 3, 1]);
    let places = graph.tensor(sys::GGML_TYPE_I64, [4, 1, 1, 1]);
    // SAFETY: the context and all tensors live.
    unsafe {
        let context = graph.context;
        let rows = sys::ggml_get_rows(context, table, ids);
        graph.nodes.push(rows);
        if said.positions.is_some() {
            let heads = sys::ggml_reshape_3d(context, rows, 8, 1, 4);
            graph.nodes.push(sys::ggml_rope(context, heads, positions, 8, 0));
        }
        if said.streams.is_some() {
            let flat = sys::ggml_reshape_2d(context, cache, 8, 3 * PLACES);
            graph.nodes.push(sys::ggml_set_rows(context, flat, rows, places));
        }
    }
    graph.allocate();
    put(ids, &said.tokens);
    put(positions, &said.positions.unwrap_or_default());
    let place = |(at, stream): (usize, i64)| stream * PLACES + at as i64;
    let rows: Vec<i64> = said.streams.unwrap_or_default().into_iter().enumerate().map(place).collect();
    put(places, &rows);
    let mut ops = ops();
    ops.set_felix(&[1, 2].map(|id| (id, Rc::clone(&spokes[id as usize - 1]), 1.0)));
    ops.begin(Rows { tokens: &tokens, positions: &[5, 6, 5, 6], sequences: &[1, 1, 2, 2], logits: &[0; 4] });
    graph.ask(&ops);
    ops.end()
}

#[test]
fn sequences_are_told_apart_by_tokens_positions_and_places() {
    let (other, same) = ([3, 4, 7, 8], [3, 4, 3, 4]);
    let (positions, streams) = (Some([5, 6, 5, 6]), Some([1, 1, 2, 2]));
    for tokens in [other, same] {
        assert_eq!(judged(tokens, Said { tokens, positions, streams }), Ok(()));
        // The second sequence comes first. The tokens may not show this.
        let swapped = Some([2, 2, 1, 1]);
        assert_eq!(judged(tokens, Said { tokens, positions, streams: swapped }), Err(FelixError::Order));
        let positions = Some([5, 6, 6, 5]);
        assert_eq!(judged(tokens, Said { tokens, positions, streams }), Err(FelixError::Order));
        let streams = Some([1, 1, 2, 0]);
        assert_eq!(judged(tokens, Said { tokens, positions: None, streams }), Err(FelixError::Order));
    }
    let swapped = [7, 8, 3, 4];
    assert_eq!(judged(other, Said { tokens: swapped, positions, streams }), Err(FelixError::Order));
    // A graph without a cache of keys shows nothing about sequences.
    assert_eq!(judged(other, Said { tokens: other, positions, streams: None }), Ok(()));
    assert_eq!(judged(same, Said { tokens: same, positions, streams: None }), Err(FelixError::Alike));
    let silent = || Said { tokens: same, positions: None, streams: None };
    assert_eq!(judged(same, silent()), Err(FelixError::Alike));
    let one = spoke();
    assert_eq!(judged_with(same, silent(), &[Rc::clone(&one), one]), Ok(()), "both have the same spoke");
}
