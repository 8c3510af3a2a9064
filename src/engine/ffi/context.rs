//! A llama.cpp context with its own threads: the safe binding starts and ends threads at each call, and reaches neither
//! adapters nor callbacks while a context lives.

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

/// What a context is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextSettings {
    /// Places for keys and values of each sequence.
    pub tokens: u32,
    /// Largest batch.
    pub batch: u32,
    /// Tokens of a batch that may have logits or vectors, at most: there is room for so many rows.
    pub outputs: u32,
    /// Sequences, each a stream of its own in the cache.
    pub sequences: u32,
    /// CPU threads.
    pub threads: u32,
    /// What is computed by kernels of our own instead of by llama.cpp's.
    pub kernels: Kernels,
    /// Whether keys and values are kept in f32, not in f16. Attention is llama.cpp's then.
    pub exact_cache: bool,
    /// Whether tokens get vectors ([`Context::embedding`]), as well as logits.
    pub embeddings: bool,
}

/// llama.cpp makes no context, for a reason that it logs; most likely for want of memory.
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
    /// There are no places left for keys and values.
    #[error("no places are left for the keys and values of the batch")]
    Full,
    /// Nobody wants it any more. What it has computed of keys and values is in the cache; they are to be forgotten.
    #[error("the batch was given up")]
    GivenUp,
    /// Another code of `llama_decode`.
    #[error("llama_decode returned {0}")]
    Code(i32),
    /// It was decoded without what a Felix spoke adds.
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

    /// Adds a token at a position of a sequence; with `logits`, [`Context::logits`] has a row for it.
    pub fn push(&mut self, token: u32, position: u32, sequence: u32, logits: bool) {
        self.tokens.push(token.cast_signed());
        self.positions.push(position.cast_signed());
        self.sequences.push(sequence.cast_signed());
        self.logits.push(i8::from(logits));
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// A context of a model, its cache divided into one stream for each sequence.
#[derive(Debug)]
pub struct Context<'a> {
    raw: NonNull<sys::llama_context>,
    /// Pools of threads that live as long as the context, with the number in each: one is made when it is first asked for. A
    /// pool of which some have nothing to do would have these spin.
    pools: Vec<(u32, NonNull<sys::ggml_threadpool>)>,
    vocabulary: usize,
    /// Rows of the last batch that have logits.
    rows: Vec<bool>,
    limits: ContextSettings,
    /// llama.cpp holds a pointer to it.
    ops: CustomOps,
    /// What the next batches are computed with.
    adapters: Vec<(Rc<Adapter<'a>>, f32)>,
    /// Keys and values of all layers.
    cache: Vec<Half>,
    /// Whether each place of a sequence is a row of its own there, in the order of positions.
    in_rows: bool,
    /// Sequences that llama.cpp hands on before it computes the next batch.
    handed: Vec<Handed>,
    model: PhantomData<&'a LlamaModel>,
}

/// Whether a batch that is being computed should be given up.
pub type GiveUp<'q> = &'q (dyn Fn() -> bool + Sync);

thread_local! {
    /// Whether the batch that this thread computes was told to stop.
    static STOPPED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a batch that was told to stop: what llama.cpp calls an error then is none.
pub fn gives_up() -> bool {
    STOPPED.get()
}

/// Called by llama.cpp behind each node.
unsafe extern "C" fn asks_to_stop(question: *mut c_void) -> bool {
    // SAFETY: the question that `decode_unless` has given, which it takes back before it ends.
    let stops = unsafe { (*question.cast::<GiveUp<'_>>())() };
    STOPPED.set(stops);
    stops
}

/// The pointer within the binding's wrapper.
pub(super) fn pointer(model: &LlamaModel) -> *mut sys::llama_model {
    const { assert!(size_of::<LlamaModel>() == size_of::<*mut sys::llama_model>()) };
    // SAFETY: LlamaModel is a transparent wrapper of a pointer that is not null; the version is pinned.
    unsafe { std::mem::transmute_copy(model) }
}

impl<'a> Context<'a> {
    /// Makes a context.
    ///
    /// # Errors
    /// llama.cpp can't.
    pub fn new(model: &'a LlamaModel, settings: ContextSettings) -> Result<Self, ContextError> {
        backend();
        let count = settings.threads.clamp(1, 512) as i32;
        // SAFETY: returns a plain struct by value.
        let mut params = unsafe { sys::llama_context_default_params() };
        // llama.cpp pads each stream to 256; the product must not be cut down to fit.
        let stream = settings.tokens.next_multiple_of(256);
        params.n_ctx = stream.saturating_mul(settings.sequences);
        params.n_batch = settings.batch;
        params.n_ubatch = settings.batch;
        // llama.cpp has a row for each sequence from the start.
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
        // llama.cpp's flash attention rounds keys and values to f16 however they are kept.
        if settings.kernels.attention.is_some() && !settings.exact_cache {
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_ENABLED;
        }
        (params.cb_eval, params.cb_eval_user_data) = ops.callback();
        // SAFETY: the model outlives the context ('a); the parameters are taken by value and point to nothing.
        let (raw, cache) = buffers::making(|| unsafe { sys::llama_init_from_model(pointer(model), params) });
        // Without flash attention values are kept in columns. Grok has none, whatever is asked for.
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

    /// Whether results depend on how many threads compute: llama.cpp's own attention divides a single row's cells among
    /// them. It is known from the first such row on.
    pub fn counts_threads(&self) -> bool {
        self.ops.counts_threads()
    }

    /// Threads that can compute.
    pub fn threads(&self) -> u32 {
        self.limits.threads
    }

    /// Lets so many threads compute the next batches, at least one and at most all.
    pub fn compute_with(&mut self, threads: u32) {
        let count = threads.clamp(1, self.limits.threads);
        let known = self.pools.iter().find(|(size, _)| *size == count).map(|&(_, pool)| pool);
        let pool = known.or_else(|| {
            // SAFETY: a plain struct by value; the parameters are read during the call only.
            let made = unsafe {
                let mut params = sys::ggml_threadpool_params_default(count.cast_signed());
                NonNull::new(sys::ggml_threadpool_new(&raw mut params))
            };
            self.pools.extend(made.map(|pool| (count, pool)));
            made
        });
        // SAFETY: all live; pools are freed after the context (see Drop). The one that computed so far is laid to rest when
        // the next graph is computed. Without a pool llama.cpp makes one for each graph.
        unsafe {
            sys::llama_set_n_threads(self.raw.as_ptr(), count.cast_signed(), count.cast_signed());
            match pool {
                Some(pool) => sys::llama_attach_threadpool(self.raw.as_ptr(), pool.as_ptr(), pool.as_ptr()),
                None => sys::llama_detach_threadpool(self.raw.as_ptr()),
            }
        }
    }

    /// Places for keys and values of each sequence.
    pub fn tokens(&self) -> usize {
        self.limits.tokens as usize
    }

    /// Computes what follows with these adapters, each multiplied with a scale, instead of those before. A change makes
    /// llama.cpp plan its graph anew, which takes a few milliseconds.
    ///
    /// # Errors
    /// llama.cpp can't: nothing has changed then.
    pub fn set_adapters(&mut self, adapters: &[(Rc<Adapter<'a>>, f32)]) -> Result<(), DecodeError> {
        let mut pairs = adapters.iter().zip(&self.adapters);
        if adapters.len() == self.adapters.len()
            && pairs.all(|(a, b)| Rc::ptr_eq(&a.0, &b.0) && a.1.to_bits() == b.1.to_bits())
        {
            return Ok(());
        }
        let mut raw: Vec<_> = adapters.iter().map(|(adapter, _)| adapter.raw()).collect();
        let mut scales: Vec<f32> = adapters.iter().map(|(_, scale)| *scale).collect();
        // SAFETY: the context lives, the adapters are of its model and are kept below; both arrays have the given length and
        // are read during the call only.
        let code = unsafe {
            sys::llama_set_adapters_lora(self.raw.as_ptr(), raw.as_mut_ptr(), raw.len(), scales.as_mut_ptr())
        };
        if code != 0 {
            return Err(DecodeError::Code(code));
        }
        self.adapters = adapters.to_vec();
        Ok(())
    }

    /// Computes what follows with these Felix spokes, at most one for each sequence. llama.cpp's graph stays as it is:
    /// sequences with different spokes, and with none, can be in one batch.
    pub fn set_felix(&mut self, uses: &[Use]) {
        self.ops.set_felix(uses);
    }

    /// Computes a batch; its keys and values are kept.
    ///
    /// # Errors
    /// llama.cpp can't: nothing of the batch may be relied on then.
    ///
    /// # Panics
    /// A batch that is empty or larger than the context was made for, or has more tokens with
    /// logits; a sequence that it does not have.
    pub fn decode(&mut self, batch: &Batch) -> Result<(), DecodeError> {
        self.decode_unless(batch, &|| false)
    }

    /// As [`decode`](Self::decode), asking behind each node of the graph whether the batch should be given up: within
    /// milliseconds, however long the batch takes.
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
        // SAFETY: all arrays have `count` elements and live until the call returns; llama.cpp only reads them. Tokens and
        // sequences are in range. The question lives as long, and is taken back at once.
        let code = unsafe {
            let question = (&raw const given_up).cast_mut().cast();
            sys::llama_set_abort_callback(self.raw.as_ptr(), Some(asks_to_stop), question);
            let code = buffers::handing(&self.handed, || sys::llama_decode(self.raw.as_ptr(), raw));
            sys::llama_set_abort_callback(self.raw.as_ptr(), None, null_mut());
            STOPPED.set(false);
            code
        };
        // With this code llama.cpp has not come to it.
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

    /// Logits `[vocabulary]` behind a token of the last batch, by its place there.
    ///
    /// # Panics
    /// The token was added without logits, or the batch failed.
    pub fn logits(&self, place: usize) -> &[f32] {
        assert!(self.rows.get(place) == Some(&true), "no logits at {place}");
        // SAFETY: the last batch had logits at this place; the row has as many numbers as the vocabulary, and the next
        // decode needs `&mut self`.
        unsafe {
            let row = sys::llama_get_logits_ith(self.raw.as_ptr(), place as i32);
            assert!(!row.is_null(), "llama.cpp has no logits at {place}");
            std::slice::from_raw_parts(row, self.vocabulary)
        }
    }

    /// What the model makes of a token of the last batch, `[hidden]`, by its place there.
    ///
    /// # Panics
    /// The token was added without logits, the batch failed, or the context is not one for embeddings.
    pub fn embedding(&self, place: usize) -> &[f32] {
        assert!(self.rows.get(place) == Some(&true), "no vector at {place}");
        // SAFETY: as for logits; the row has as many numbers as the model is wide.
        unsafe {
            let row = sys::llama_get_embeddings_ith(self.raw.as_ptr(), place as i32);
            assert!(!row.is_null(), "llama.cpp has no vector at {place}");
            let width = sys::llama_model_n_embd_out(sys::llama_get_model(self.raw.as_ptr()));
            std::slice::from_raw_parts(row, width.unsigned_abs() as usize)
        }
    }

    /// Bytes of a sequence's keys and values, or of its recurrent state, as llama.cpp would save them.
    pub fn bytes(&mut self, sequence: u32) -> u64 {
        assert!(sequence < self.limits.sequences, "no such sequence");
        // SAFETY: the context lives, and the sequence is one of its own.
        unsafe { sys::llama_state_seq_get_size(self.raw.as_ptr(), sequence.cast_signed()) as u64 }
    }

    /// Removes a sequence's keys and values from a position on; says whether it could (a recurrent state can only be
    /// removed as a whole).
    pub fn forget(&mut self, sequence: u32, from: u32) -> bool {
        assert!(sequence < self.limits.sequences, "no such sequence");
        // SAFETY: the context lives, and the sequence is one of its own. An end of -1 means all positions.
        unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            sys::llama_memory_seq_rm(memory, sequence.cast_signed(), from.cast_signed(), -1)
        }
    }

    /// Bytes of keys and values that each place of a sequence has. Recurrent states have no places.
    pub fn place_bytes(&self) -> u64 {
        self.cache.iter().map(|half| half.place as u64).sum()
    }

    /// Whether a copy takes as long as what is copied, and memory can be given back; else each
    /// takes a whole stream.
    pub fn is_sparse(&self) -> bool {
        self.in_rows && !self.cache.is_empty()
    }

    /// Gives the memory of a sequence's places from one on back to the system; all of them must
    /// have been forgotten. Says whether it could: not as long as the sequence is about to be
    /// copied.
    pub fn give_back(&mut self, sequence: u32, from: u32) -> bool {
        assert!(sequence < self.limits.sequences, "no such sequence");
        let (sequence, from) = (sequence as usize, from as usize);
        if !self.in_rows || self.handed.iter().any(|handed| handed.from == sequence) {
            return false;
        }
        // SAFETY: the context lives and computes nothing; what is there belongs to no position.
        self.cache.iter().for_each(|half| unsafe { half.give_back(sequence, from) });
        true
    }

    /// Gives a sequence the keys and values of the first `places` of another; what it had is gone.
    /// Those behind them are to be forgotten before the next batch: llama.cpp knows of whole
    /// streams only.
    pub fn copy(&mut self, from: u32, to: u32, places: u32) {
        assert!(
            from < self.limits.sequences && to < self.limits.sequences && from != to,
            "no such sequences"
        );
        // SAFETY: the context lives, and both sequences are its own; -1 means all positions.
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
    /// Pages of each sequence's keys and values that are in memory.
    pub(super) fn resident(&self) -> Vec<usize> {
        let of = |stream| self.cache.iter().map(|half| half.resident(stream)).sum();
        (0..self.limits.sequences as usize).map(of).collect()
    }

    /// Keys and values of layers.
    pub(super) fn halves(&self) -> usize {
        self.cache.len()
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing else holds any of the pointers; the context goes first because it uses the threads.
        unsafe {
            sys::llama_free(self.raw.as_ptr());
            for (_, pool) in &self.pools {
                sys::ggml_threadpool_free(pool.as_ptr());
            }
        }
    }
}
