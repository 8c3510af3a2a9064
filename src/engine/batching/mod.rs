//! The lanes: requests that are decoded together, each in its own sequence of llama.cpp. There may
//! be more sequences than lanes; the others keep keys and values for later requests (see
//! [`super::prefix_cache`]).

mod prefix_reuse;
mod room;
mod step;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use llama_cpp_2::model::LlamaModel;
use tracing::Span;

pub use self::room::room;
use self::room::{is_partial, sequences, warm_up};
use super::admission::Ticket;
use super::drafting::{self, Chances, Cost, Draft};
use super::ffi::{Batch, Context, ContextSettings};
use super::kernels::Kernels;
use super::prefix_cache::{NO_SPOKE, Origin, Placement};
use super::scheduler::BATCH;
use super::sequence::{Sequence, Step};
use super::spokes::SpokeUse;
use super::thread_tuner::ThreadTuner;
use super::vocabulary::Vocabulary;
use super::{EngineError, LaneState, Totals, Usage};
use crate::config::ModelSettings;

/// Bytes of keys and values copied per second, a cautious estimate.
const COPIED_PER_SECOND: f64 = 2e9;
/// Minimum seconds of a copy.
const COPY: f64 = 1e-4;
/// Minimum bytes that are worth giving back to the system.
const SPARE: u64 = 1 << 20;

/// How long one set of LoRAs is computed while others wait.
const TURN: Duration = Duration::from_millis(50);

/// All lanes, and the context that they share.
pub struct Lanes<'a> {
    context: Context<'a>,
    tuner: ThreadTuner,
    batch: Batch,
    /// The sequences of llama.cpp. There may be more of them than lanes.
    kv: Vec<KvSequence<'a>>,
    /// Number of requests that run at the same time.
    lanes: usize,
    /// Number of KV cache cells of each sequence.
    cells: usize,
    /// Seconds to copy a sequence, whatever part of it is wanted.
    copying: f64,
    /// Whether a prefix of a sequence can be used without the rest.
    partial: bool,
    clock: u64,
    /// The set of LoRAs whose requests are computed now, until when, and when each set last had its
    /// turn.
    turn: Origin,
    turn_ends: Instant,
    turns: HashMap<Origin, u64>,
    chances: Chances,
    cost: Cost,
    totals: Totals,
}

/// What a sequence of llama.cpp's KV cache holds, and the request that runs in it.
#[derive(Default)]
struct KvSequence<'a> {
    /// Tokens whose keys and values are in the context.
    cached: Vec<u32>,
    /// Number of cells that may occupy memory: those written since memory was last given back.
    written: usize,
    origin: Origin,
    last_used: u64,
    /// Whether the sequence keeps the head of prompts, for requests that begin with it.
    kept: bool,
    running: Option<Running<'a>>,
}

struct Running<'a> {
    sequence: Sequence,
    age: u64,
    /// The prompt, including the dictated beginning of the answer.
    planned: Vec<u32>,
    /// Tokens that are certain but not decoded yet.
    pending: Vec<u32>,
    /// A sequence that will soon hold a prefix of this prompt, and the prefix's length in tokens.
    follow: Option<(usize, usize)>,
    /// Lengths of the prefixes that are kept for other requests once they are decoded.
    heads: Vec<usize>,
    spokes: SpokeUse<'a>,
    drafts: bool,
    span: Span,
    _ticket: Ticket,
}

/// A request that enters a lane.
pub struct Entry<'a> {
    /// Tokens to decode.
    pub prompt: Vec<u32>,
    /// Length of the prefix that other prompts probably share.
    pub head: Option<usize>,
    /// The state of its answer.
    pub sequence: Sequence,
    /// Spokes that the post runs with.
    pub spokes: SpokeUse<'a>,
    /// Whether to draft tokens.
    pub drafts: bool,
    /// Held until the request ends.
    pub ticket: Ticket,
    /// The request's tracing span.
    pub span: Span,
}

impl<'a> Lanes<'a> {
    /// Creates the context.
    ///
    /// # Errors
    /// llama.cpp can't create it, most likely because memory is short.
    pub fn new(
        model: &'a LlamaModel,
        settings: &ModelSettings,
        context: u32,
        kernels: Kernels,
    ) -> Result<Self, String> {
        let lanes = settings.lanes;
        let partial = is_partial(model);
        let sequences = sequences(model, settings)?;
        let settings = ContextSettings {
            tokens: context,
            batch: BATCH as u32,
            outputs: (BATCH as u32).min(lanes * (1 + drafting::MOST as u32)),
            sequences,
            threads: settings.threads,
            kernels,
            exact_cache: false,
            embeddings: false,
        };
        let mut made = Context::new(model, settings).map_err(|e| {
            format!("{e}; model.context, model.lanes and model.cached_sequences set its size")
        })?;
        let place_bytes = warm_up(&mut made).map_err(|e| e.to_string())?;
        let (cells, threads) = (made.tokens(), made.threads());
        let cache_size = cells as u64 * u64::from(sequences);
        let copying =
            if made.is_sparse() { COPY } else { place_bytes as f64 * cells as f64 / COPIED_PER_SECOND };
        Ok(Self {
            context: made,
            tuner: ThreadTuner::new(threads, Instant::now()),
            batch: Batch::default(),
            kv: (0..sequences).map(|_| KvSequence::default()).collect(),
            lanes: lanes as usize,
            cells,
            copying,
            partial,
            clock: 0,
            turn: NO_SPOKE,
            turn_ends: Instant::now(),
            turns: HashMap::new(),
            chances: Chances::default(),
            cost: Cost::default(),
            totals: Totals { threads, cache_size, place_bytes, ..Totals::default() },
        })
    }

    /// State of each lane: running ones first, then those used most recently.
    pub fn states(&self) -> Vec<LaneState> {
        let mut order: Vec<_> = self.kv.iter().collect();
        order.sort_by_key(|kv| (kv.running.is_none(), std::cmp::Reverse(kv.last_used)));
        let state = |(lane, kv): (u32, &KvSequence<'a>)| {
            let sequence = kv.running.as_ref().map(|running| &running.sequence);
            LaneState {
                lane,
                request: sequence.map(|sequence| sequence.id().to_owned()),
                task: kv.running.as_ref().map_or(0, |running| running.age),
                prompt_tokens: sequence.map_or(0, |sequence| sequence.usage().prompt_tokens),
                completion_tokens: sequence.map_or(0, |sequence| sequence.usage().completion_tokens),
                cached_tokens: sequence.map_or(0, |sequence| sequence.usage().cached_tokens),
            }
        };
        (0..).zip(order.into_iter().take(self.lanes)).map(state).collect()
    }

    /// Counters since the start.
    pub fn totals(&self) -> Totals {
        let cache_used = self.kv.iter().map(|kv| kv.cached.len() as u64).sum();
        Totals { cache_used, ..self.totals }
    }

    /// Number of requests in lanes.
    pub fn running(&self) -> usize {
        self.kv.iter().filter(|kv| kv.running.is_some()).count()
    }

    /// Whether a lane is free.
    pub fn has_free(&self) -> bool {
        self.running() < self.lanes
    }

    /// Starts a request in its lane.
    pub fn start(&mut self, placement: Placement, entry: Entry<'a>, vocabulary: &Vocabulary) {
        let Entry { prompt, head, mut sequence, spokes, drafts, ticket, span } = entry;
        let Step::Decode(dictated) = sequence.start(vocabulary) else {
            self.count_answer(sequence.usage());
            drop(ticket);
            return sequence.conclude();
        };
        let Placement { target, known, source, follow, mark } = placement;
        self.totals.cache_evictions += u64::from(known == 0 && !self.kv[target].cached.is_empty());
        self.clock += 1;
        let age = self.clock;
        if target == source {
            self.forget(target, known);
        } else {
            self.copy(source, target, known);
            if known > 0 {
                self.kv[source].last_used = age;
            }
        }
        let heads = if self.partial { vec![] } else { [head, mark].into_iter().flatten().collect() };
        if let Some((leader, length)) = follow.filter(|_| !self.partial)
            && let Some(leader) = &mut self.kv[leader].running
        {
            leader.heads.push(length);
        }
        let kv = &mut self.kv[target];
        self.totals.cached_tokens += kv.cached.len() as u64;
        let mut planned = prompt;
        planned.extend(dictated);
        let pending = planned[kv.cached.len()..].to_vec();
        kv.origin = spokes.origin;
        kv.kept = false;
        kv.running = Some(Running {
            sequence,
            age,
            planned,
            pending,
            follow,
            heads,
            spokes,
            drafts,
            span,
            _ticket: ticket,
        });
    }

    /// Ends requests whose clients have stopped listening.
    pub fn drop_cancelled(&mut self) {
        for index in 0..self.kv.len() {
            if self.kv[index].running.as_ref().is_some_and(|running| running.sequence.cancelled()) {
                self.take(index);
            }
        }
    }

    /// Ends all requests with an error.
    pub fn fail_all(&mut self, error: &EngineError) {
        for index in 0..self.kv.len() {
            if let Some(running) = self.take(index) {
                running.sequence.fail(error.clone());
            }
        }
    }

    /// Frees a lane. What it has decoded stays in the KV cache.
    fn take(&mut self, index: usize) -> Option<Running<'a>> {
        self.clock += 1;
        self.kv[index].last_used = self.clock;
        let running = self.kv[index].running.take()?;
        let usage = running.sequence.usage();
        running.span.in_scope(|| {
            tracing::debug!(
                answer = running.sequence.id(),
                tokens = usage.completion_tokens,
                "its lane is free"
            );
        });
        self.count_answer(usage);
        self.give_back(index);
        Some(running)
    }

    /// Gives the memory after the cached tokens of an idle sequence back to the system, if an
    /// earlier request has left much of it.
    fn give_back(&mut self, index: usize) {
        let kv = &mut self.kv[index];
        let held = kv.cached.len();
        let spare = kv.written.saturating_sub(held) as u64 * self.totals.place_bytes;
        if spare >= SPARE && self.context.give_back(index as u32, held as u32) {
            kv.written = held;
        }
    }

    fn count_answer(&mut self, usage: &Usage) {
        self.totals.predicted_tokens += u64::from(usage.completion_tokens);
        self.totals.forced_tokens += u64::from(usage.forced_tokens);
        let tokens = u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens);
        self.totals.most_tokens = self.totals.most_tokens.max(tokens);
        self.totals.drafted_tokens += u64::from(usage.drafted_tokens);
        self.totals.accepted_tokens += u64::from(usage.accepted_tokens);
    }

    /// Drafts the next tokens of a lane.
    fn draft(&self, kv: &KvSequence<'a>) -> Draft {
        let Some(running) = kv.running.as_ref().filter(|running| running.drafts && self.partial) else {
            return Draft::default();
        };
        if kv.cached.len() + running.pending.len() < running.planned.len() + 1 {
            return Draft::default();
        }
        let text: Vec<u32> = kv.cached.iter().chain(&running.pending).copied().collect();
        drafting::look_up(&text, drafting::MOST.min(running.sequence.left()))
    }
}
