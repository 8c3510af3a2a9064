//! A llama.cpp context with its own threads. The safe binding starts and ends threads at each call,
//! and can't change adapters or callbacks of a living context.

use std::cell::Cell;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use super::adapter::Adapter;
use super::buffers::{self, Half, Handed};
use super::custom_ops::{CustomOps, FelixError, Rows, Use};
use crate::engine::backend::backend;
use crate::engine::kernels::Kernels;

/// Settings of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextSettings {
    /// KV cache cells of each sequence.
    pub tokens: u32,
    /// Maximum tokens of a batch.
    pub batch: u32,
    /// Maximum tokens of a batch that have logits or vectors. Memory for these rows is allocated.
    pub outputs: u32,
    /// Number of sequences. Each has its own stream in the cache.
    pub sequences: u32,
    /// CPU threads.
    pub threads: u32,
    /// Our kernels that replace llama.cpp's.
    pub kernels: Kernels,
    /// Whether keys and values are stored in f32 instead of f16. llama.cpp computes attention then.
    pub exact_cache: bool,
    /// Whether tokens get vectors ([`Context::embedding`]) in addition to logits.
    pub embeddings: bool,
}

/// llama.cpp can't create the context. It logs why; most likely, memory is short.
#[derive(Debug, thiserror::Error)]
#[error(
    "llama.cpp made no context of {sequences} sequences with {tokens} tokens each; its log (target llama-cpp-2) says why"
)]
pub struct ContextError {
    sequences: u32,
    tokens: u32,
}

/// A batch was not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No KV cache cells are left.
    #[error("no places are left for the keys and values of the batch")]
    Full,
    /// The callback aborted it. Some of its keys and values are in the cache; the caller must
    /// remove them.
    #[error("the batch was given up")]
    GivenUp,
    /// Another code of `llama_decode`.
    #[error("llama_decode returned {0}")]
    Code(i32),
    /// It was decoded without a Felix spoke.
    #[error(transparent)]
    Felix(#[from] FelixError),
}

/// Tokens to decode.
#[derive(Debug, Default)]
pub struct Batch {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    sequences: Vec<i32>,
    logits: Vec<i8>,
}

impl Batch {
    /// Removes all tokens.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.logits.clear();
    }

    /// Adds a token at a position of a sequence. With `logits`, [`Context::logits`] has a row for
    /// it.
    pub fn push(&mut self, token: u32, position: u32, sequence: u32, logits: bool) {
        self.tokens.push(token.cast_signed());
        self.positions.push(position.cast_signed());
        self.sequences.push(sequence.cast_signed());
        self.logits.push(i8::from(logits));
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// A context of a model. Its cache has one stream for each sequence.
#[derive(Debug)]
pub struct Context<'a> {
    raw: NonNull<sys::llama_context>,
    /// Thread pools that live as long as the context, each with its number of threads. There is one
    /// per number, created on first use: idle threads of a larger pool would spin.
    pools: Vec<(u32, NonNull<sys::ggml_threadpool>)>,
    vocabulary: usize,
    /// Whether each token of the last batch has logits.
    rows: Vec<bool>,
    limits: ContextSettings,
    /// llama.cpp holds a pointer to it.
    ops: CustomOps,
    /// LoRA adapters of the next batches, with their scales.
    adapters: Vec<(Rc<Adapter<'a>>, f32)>,
    /// Keys and values of all layers.
    cache: Vec<Half>,
    /// Whether each cell of a sequence is a row there, in the order of positions.
    in_rows: bool,
    /// Sequences that llama.cpp copies before it computes the next batch.
    handed: Vec<Handed>,
    model: PhantomData<&'a LlamaModel>,
}

/// Whether the current batch should be aborted.
pub type GiveUp<'q> = &'q (dyn Fn() -> bool + Sync);

thread_local! {
    /// Whether the batch that this thread computes is being aborted.
    static STOPPED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is aborting a batch. llama.cpp logs that as an error, although it is none.
pub fn gives_up() -> bool {
    STOPPED.get()
}

/// Called by llama.cpp after each node.
unsafe extern "C" fn asks_to_stop(question: *mut c_void) -> bool {
    // SAFETY: the pointer that `decode_unless` has set, which it removes before it returns.
    let stops = unsafe { (*question.cast::<GiveUp<'_>>())() };
    STOPPED.set(stops);
    stops
}

/// The pointer inside the binding's wrapper.
pub(super) fn pointer(model: &LlamaModel) -> *mut sys::llama_model {
    const { assert!(size_of::<LlamaModel>() == size_of::<*mut sys::llama_model>()) };
    // SAFETY: LlamaModel is a transparent wrapper of a non-null pointer; the version is pinned.
    unsafe { std::mem::transmute_copy(model) }
}

impl<'a> Context<'a> {
    /// Creates a context.
    ///
    /// # Errors
    /// llama.cpp can't.
    pub fn new(model: &'a LlamaModel, settings: ContextSettings) -> Result<Self, ContextError> {
        backend();
        let count = settings.threads.clamp(1, 512) as i32;
        // SAFETY: returns a plain struct by value.
        let mut params = unsafe { sys::llama_context_default_params() };
        // llama.cpp pads each stream to a multiple of 256. Pad here, so that it doesn't shrink the
        // streams to fit the total.
        let stream = settings.tokens.next_multiple_of(256);
        params.n_ctx = stream.saturating_mul(settings.sequences);
        params.n_batch = settings.batch;
        params.n_ubatch = settings.batch;
        // llama.cpp reserves a row for each sequence from the start.
        params.n_outputs_max = settings.outputs.max(settings.sequences);
        params.n_seq_max = settings.sequences;
        params.n_threads = count;
        params.n_threads_batch = count;
        params.no_perf = true;
        params.kv_unified = false;
        params.embeddings = settings.embeddings;
        params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
        if settings.exact_cache {
            (params.type_k, params.type_v) = (sys::GGML_TYPE_F32, sys::GGML_TYPE_F32);
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
        }
        let ops = CustomOps::new(count as usize, settings.kernels);
        // llama.cpp's flash attention rounds keys and values to f16, however they are stored.
        if settings.kernels.attention.is_some() && !settings.exact_cache {
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_ENABLED;
        }
        (params.cb_eval, params.cb_eval_user_data) = ops.callback();
        // SAFETY: the model outlives the context ('a). The parameters are passed by value; the
        // callback's data is owned by `ops`, which outlives the context.
        let (raw, cache) = buffers::making(|| unsafe { sys::llama_init_from_model(pointer(model), params) });
        // Without flash attention, values are stored in columns. Grok never uses flash attention.
        let in_rows = params.flash_attn_type == sys::LLAMA_FLASH_ATTN_TYPE_ENABLED
            && model.meta_val_str("general.architecture").is_ok_and(|name| name != "grok");
        let raw = NonNull::new(raw)
            .ok_or(ContextError { sequences: settings.sequences, tokens: settings.tokens })?;
        let vocabulary = model.n_vocab().unsigned_abs() as usize;
        // SAFETY: the context lives.
        let tokens = unsafe { sys::llama_n_ctx(raw.as_ptr()) } / settings.sequences;
        let limits = ContextSettings { tokens, threads: count.cast_unsigned(), ..settings };
        let mut context = Self {
            raw,
            pools: Vec::new(),
            vocabulary,
            rows: Vec::new(),
            limits,
            ops,
            adapters: Vec::new(),
            cache,
            in_rows,
            handed: Vec::new(),
            model: PhantomData,
        };
        context.compute_with(limits.threads);
        Ok(context)
    }

    /// Whether results depend on the number of threads: llama.cpp's own attention divides the cells
    /// of a single row among them. Known after the first such row.
    pub fn counts_threads(&self) -> bool {
        self.ops.counts_threads()
    }

    /// Maximum number of threads.
    pub fn threads(&self) -> u32 {
        self.limits.threads
    }

    /// Sets the number of threads for the next batches, at least one and at most all.
    pub fn compute_with(&mut self, threads: u32) {
        let count = threads.clamp(1, self.limits.threads);
        let known = self.pools.iter().find(|(size, _)| *size == count).map(|&(_, pool)| pool);
        let pool = known.or_else(|| {
            // SAFETY: a plain struct by value; the parameters are only read during the call.
            let made = unsafe {
                let mut params = sys::ggml_threadpool_params_default(count.cast_signed());
                NonNull::new(sys::ggml_threadpool_new(&raw mut params))
            };
            self.pools.extend(made.map(|pool| (count, pool)));
            made
        });
        // SAFETY: all pointers are valid; pools are freed after the context (see Drop). llama.cpp
        // pauses the previous pool when it computes the next graph. Without a pool, it creates one
        // for each graph.
        unsafe {
            sys::llama_set_n_threads(self.raw.as_ptr(), count.cast_signed(), count.cast_signed());
            match pool {
                Some(pool) => sys::llama_attach_threadpool(self.raw.as_ptr(), pool.as_ptr(), pool.as_ptr()),
                None => sys::llama_detach_threadpool(self.raw.as_ptr()),
            }
        }
    }

    /// KV cache cells of each sequence.
    pub fn tokens(&self) -> usize {
        self.limits.tokens as usize
    }

    /// Sets the LoRA adapters of the next batches, each with a scale. A change makes llama.cpp plan
    /// its graph anew, which takes a few milliseconds.
    ///
    /// # Errors
    /// llama.cpp can't. Nothing has changed then.
    pub fn set_adapters(&mut self, adapters: &[(Rc<Adapter<'a>>, f32)]) -> Result<(), DecodeError> {
        let mut pairs = adapters.iter().zip(&self.adapters);
        if adapters.len() == self.adapters.len()
            && pairs.all(|(a, b)| Rc::ptr_eq(&a.0, &b.0) && a.1.to_bits() == b.1.to_bits())
        {
            return Ok(());
        }
        let mut raw: Vec<_> = adapters.iter().map(|(adapter, _)| adapter.raw()).collect();
        let mut scales: Vec<f32> = adapters.iter().map(|(_, scale)| *scale).collect();
        // SAFETY: the context lives. The adapters belong to its model and are kept below. Both
        // arrays have this length, and are only read during the call.
        let code = unsafe {
            sys::llama_set_adapters_lora(self.raw.as_ptr(), raw.as_mut_ptr(), raw.len(), scales.as_mut_ptr())
        };
        if code != 0 {
            return Err(DecodeError::Code(code));
        }
        self.adapters = adapters.to_vec();
        Ok(())
    }

    /// Sets the Felix spokes of the next batches, at most one for each sequence. llama.cpp's graph
    /// doesn't change, so a batch can have sequences with different spokes and without any.
    pub fn set_felix(&mut self, uses: &[Use]) {
        self.ops.set_felix(uses);
    }

    /// Computes a batch and stores its keys and values.
    ///
    /// # Errors
    /// llama.cpp can't. No result of the batch is valid then.
    ///
    /// # Panics
    /// The batch is empty, is larger than the context's limit, has more tokens with logits than the
    /// limit, or has an unknown sequence or token.
    pub fn decode(&mut self, batch: &Batch) -> Result<(), DecodeError> {
        self.decode_unless(batch, &|| false)
    }

    /// Like [`decode`](Self::decode), but asks after each node of the graph whether to abort the
    /// batch. So an abort takes milliseconds, however long the batch takes.
    ///
    /// # Errors
    /// [`DecodeError::GivenUp`]; llama.cpp can't.
    ///
    /// # Panics
    /// As [`decode`](Self::decode).
    pub fn decode_unless(&mut self, batch: &Batch, given_up: GiveUp<'_>) -> Result<(), DecodeError> {
        let count = batch.len();
        assert!((1..=self.limits.batch as usize).contains(&count), "{count} tokens in a batch");
        let sequences = self.limits.sequences.cast_signed();
        assert!(batch.sequences.iter().all(|id| (0..sequences).contains(id)), "no such sequence");
        let vocabulary = self.vocabulary as i32;
        assert!(batch.tokens.iter().all(|id| (0..vocabulary).contains(id)), "no such token");
        let outputs = batch.logits.iter().filter(|&&wanted| wanted != 0).count();
        assert!(outputs <= self.limits.outputs as usize, "{outputs} tokens with logits in a batch");
        let mut one_each = vec![1i32; count];
        let mut lists: Vec<*mut i32> =
            batch.sequences.iter().map(|id| std::ptr::from_ref(id).cast_mut()).collect();
        let raw = sys::llama_batch {
            n_tokens: count as i32,
            token: batch.tokens.as_ptr().cast_mut(),
            embd: null_mut(),
            pos: batch.positions.as_ptr().cast_mut(),
            n_seq_id: one_each.as_mut_ptr(),
            seq_id: lists.as_mut_ptr(),
            logits: batch.logits.as_ptr().cast_mut(),
        };
        self.rows.clear();
        #[cfg(feature = "test-support")]
        crate::engine::kernels::may_die("llama.cpp");
        let Batch { tokens, positions, sequences, logits } = batch;
        self.ops.begin(Rows { tokens, positions, sequences, logits });
        // SAFETY: all arrays have `count` elements and live until the call returns, and llama.cpp
        // only reads them. Tokens and sequences are in range. The callback's pointer is valid
        // during the call and is removed right after it.
        let code = unsafe {
            let question = (&raw const given_up).cast_mut().cast();
            sys::llama_set_abort_callback(self.raw.as_ptr(), Some(asks_to_stop), question);
            let code = buffers::handing(&self.handed, || sys::llama_decode(self.raw.as_ptr(), raw));
            sys::llama_set_abort_callback(self.raw.as_ptr(), None, null_mut());
            STOPPED.set(false);
            code
        };
        // With this code, llama.cpp refused the batch before it copied any sequence.
        const REFUSED: i32 = -1;
        if code != REFUSED {
            self.handed.clear();
        }
        match code {
            0 => {
                self.ops.end()?;
                self.rows.extend(batch.logits.iter().map(|&wanted| wanted != 0));
                Ok(())
            }
            1 => Err(DecodeError::Full),
            2 => Err(DecodeError::GivenUp),
            other => Err(DecodeError::Code(other)),
        }
    }

    /// Logits `[vocabulary]` after a token of the last batch, by the token's index there.
    ///
    /// # Panics
    /// The token was added without logits, or the batch failed.
    pub fn logits(&self, place: usize) -> &[f32] {
        assert!(self.rows.get(place) == Some(&true), "no logits at {place}");
        // SAFETY: the last batch had logits at this index. The row is as long as the vocabulary,
        // and the next decode needs `&mut self`.
        unsafe {
            let row = sys::llama_get_logits_ith(self.raw.as_ptr(), place as i32);
            assert!(!row.is_null(), "llama.cpp has no logits at {place}");
            std::slice::from_raw_parts(row, self.vocabulary)
        }
    }

    /// The final hidden state `[hidden]` of a token of the last batch, by the token's index there.
    ///
    /// # Panics
    /// The token was added without logits, the batch failed, or the context has no embeddings.
    pub fn embedding(&self, place: usize) -> &[f32] {
        assert!(self.rows.get(place) == Some(&true), "no vector at {place}");
        // SAFETY: as for logits; the row is as long as the model is wide.
        unsafe {
            let row = sys::llama_get_embeddings_ith(self.raw.as_ptr(), place as i32);
            assert!(!row.is_null(), "llama.cpp has no vector at {place}");
            let width = sys::llama_model_n_embd_out(sys::llama_get_model(self.raw.as_ptr()));
            std::slice::from_raw_parts(row, width.unsigned_abs() as usize)
        }
    }

    /// Bytes of a sequence's keys and values, or of its recurrent state, in the form in which
    /// llama.cpp saves them.
    pub fn bytes(&mut self, sequence: u32) -> u64 {
        assert!(sequence < self.limits.sequences, "no such sequence");
        // SAFETY: the context lives and has this sequence.
        unsafe { sys::llama_state_seq_get_size(self.raw.as_ptr(), sequence.cast_signed()) as u64 }
    }

    /// Removes a sequence's keys and values from a position on. Returns whether it could: a
    /// recurrent state can only be removed as a whole.
    pub fn forget(&mut self, sequence: u32, from: u32) -> bool {
        assert!(sequence < self.limits.sequences, "no such sequence");
        // SAFETY: the context lives and has this sequence. An end of -1 means all positions.
        unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            sys::llama_memory_seq_rm(memory, sequence.cast_signed(), from.cast_signed(), -1)
        }
    }

    /// Bytes of keys and values per cell. Recurrent states have no cells.
    pub fn place_bytes(&self) -> u64 {
        self.cache.iter().map(|half| half.place as u64).sum()
    }

    /// Whether a copy costs only as much as its length, and memory can be given back. Otherwise, a
    /// copy costs a whole stream.
    pub fn is_sparse(&self) -> bool {
        self.in_rows && !self.cache.is_empty()
    }

    /// Gives the memory of a sequence's cells from `from` on back to the system. They must have
    /// been removed. Returns whether it could: it can't while a copy of the sequence is pending.
    pub fn give_back(&mut self, sequence: u32, from: u32) -> bool {
        assert!(sequence < self.limits.sequences, "no such sequence");
        let (sequence, from) = (sequence as usize, from as usize);
        if !self.in_rows || self.handed.iter().any(|handed| handed.from == sequence) {
            return false;
        }
        // SAFETY: the context lives and computes nothing, and the cells have no position.
        self.cache.iter().for_each(|half| unsafe { half.give_back(sequence, from) });
        true
    }

    /// Replaces a sequence by the first `places` cells of another. The caller must remove the cells
    /// after them before the next batch, because llama.cpp copies whole streams only.
    pub fn copy(&mut self, from: u32, to: u32, places: u32) {
        assert!(
            from < self.limits.sequences && to < self.limits.sequences && from != to,
            "no such sequences"
        );
        // SAFETY: the context lives and has both sequences. -1 means all positions.
        unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            sys::llama_memory_seq_cp(memory, from.cast_signed(), to.cast_signed(), -1, -1);
        }
        if self.in_rows {
            let handed = Handed { from: from as usize, to: to as usize, places: places as usize };
            match self.handed.iter_mut().find(|other| (other.from, other.to) == (handed.from, handed.to)) {
                Some(other) => other.places = other.places.max(handed.places),
                None => self.handed.push(handed),
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
impl Context<'_> {
    /// Number of resident pages of each sequence's keys and values.
    pub(super) fn resident(&self) -> Vec<usize> {
        let of = |stream| self.cache.iter().map(|half| half.resident(stream)).sum();
        (0..self.limits.sequences as usize).map(of).collect()
    }

    /// Number of key and value tensors.
    pub(super) fn halves(&self) -> usize {
        self.cache.len()
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing else holds any of the pointers. The context is freed first, because it
        // uses the threads.
        unsafe {
            sys::llama_free(self.raw.as_ptr());
            for (_, pool) in &self.pools {
                sys::ggml_threadpool_free(pool.as_ptr());
            }
        }
    }
}
