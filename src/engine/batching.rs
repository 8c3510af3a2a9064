//! Lanes: llama.cpp sequences that are decoded together, each with the keys and values of its last request kept.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::backend::backend;
use super::constraint::Grammars;
use super::llama::{LlamaSettings, Ticket};
use super::run::{Run, Step};
use super::scheduler::{Capacity, Free, Work, best_lane, plan};
use super::vocabulary::Vocabulary;
use super::worker::context_params;
use super::{EngineError, LaneState};

/// Tokens of a batch; of these, prompt tokens when another lane decodes.
const CAPACITY: Capacity = Capacity { batch: 512, prefill_beside: 128 };

/// All lanes and the context that they share.
pub struct Lanes<'a> {
    context: LlamaContext<'a>,
    batch: LlamaBatch<'static>,
    lanes: Vec<Lane>,
    clock: u64,
}

#[derive(Default)]
struct Lane {
    /// Tokens whose keys and values are in the context.
    cached: Vec<u32>,
    last_used: u64,
    running: Option<Running>,
}

struct Running {
    run: Run,
    age: u64,
    /// Tokens that are to be decoded.
    pending: Vec<u32>,
    /// Length of the prompt, dictated beginning of the answer included.
    prompt: usize,
    _ticket: Ticket,
}

/// A lane for a request: its index and how much of the prompt it holds.
pub struct Reserved {
    lane: usize,
    /// Tokens of the prompt that need no decoding.
    pub cached: usize,
}

impl<'a> Lanes<'a> {
    /// Makes the context.
    ///
    /// # Errors
    /// llama.cpp can't, most likely for want of memory.
    pub fn new(model: &'a LlamaModel, settings: &LlamaSettings, context: u32) -> Result<Self, String> {
        let lanes = settings.lanes.max(1);
        let params = context_params(settings, context.saturating_mul(lanes), CAPACITY.batch as u32)
            .with_n_seq_max(lanes)
            .with_kv_unified(true);
        let made = model.new_context(backend(), params).map_err(|e| {
            format!("no context of {lanes} lanes with {context} tokens each: {e}; model.context and model.lanes set its size")
        })?;
        let lanes = (0..lanes).map(|_| Lane::default()).collect();
        Ok(Self { context: made, batch: LlamaBatch::new(CAPACITY.batch, 1), lanes, clock: 0 })
    }

    /// What each lane does.
    pub fn states(&self) -> Vec<LaneState> {
        let state = |(lane, state): (u32, &Lane)| LaneState {
            lane,
            request: state.running.as_ref().map(|running| running.run.id().to_owned()),
            prompt_tokens: state.running.as_ref().map_or(0, |running| running.run.usage().prompt_tokens),
            completion_tokens: state
                .running
                .as_ref()
                .map_or(0, |running| running.run.usage().completion_tokens),
            cached_tokens: state.cached.len() as u32,
        };
        (0..).zip(&self.lanes).map(state).collect()
    }

    /// Requests in lanes.
    pub fn running(&self) -> u32 {
        self.lanes.iter().filter(|lane| lane.running.is_some()).count() as u32
    }

    /// Whether another request can be taken.
    pub fn has_free(&self) -> bool {
        self.lanes.iter().any(|lane| lane.running.is_none())
    }

    /// The free lane that knows most of a prompt; call only when there is one.
    pub fn reserve(&self, prompt: &[u32]) -> Reserved {
        let free: Vec<_> = (0..)
            .zip(&self.lanes)
            .filter(|(_, lane)| lane.running.is_none())
            .map(|(index, lane)| Free { lane: index, cached: &lane.cached, last_used: lane.last_used })
            .collect();
        let (lane, shared) = best_lane(&free, prompt).expect("the caller has seen a free lane");
        // The last token is decoded again in any case: its logits begin the answer.
        Reserved { lane, cached: shared.min(prompt.len() - 1) }
    }

    /// Puts a request into its lane.
    pub fn start(
        &mut self,
        reserved: &Reserved,
        prompt: Vec<u32>,
        mut run: Run,
        ticket: Ticket,
        words: &Vocabulary,
    ) {
        let Step::Decode(dictated) = run.start(words) else { return };
        self.forget(reserved.lane, reserved.cached);
        self.clock += 1;
        let lane = &mut self.lanes[reserved.lane];
        let known = lane.cached.len();
        let mut pending = prompt;
        pending.extend(dictated);
        let prompt = pending.len();
        pending.drain(..known);
        lane.running = Some(Running { run, age: self.clock, pending, prompt, _ticket: ticket });
    }

    /// Removes keys and values behind the first `keep` tokens of a lane, or all where the model can't do that.
    fn forget(&mut self, lane: usize, keep: usize) {
        let sequence = lane as u32;
        let from = u32::try_from(keep).unwrap_or(u32::MAX);
        let partly =
            keep > 0 && self.context.clear_kv_cache_seq(Some(sequence), Some(from), None).unwrap_or(false);
        if partly {
            self.lanes[lane].cached.truncate(keep);
        } else {
            // Removing a whole sequence can't fail.
            let _ = self.context.clear_kv_cache_seq(Some(sequence), None, None);
            self.lanes[lane].cached.clear();
        }
    }

    /// Ends requests that nobody waits for.
    pub fn drop_cancelled(&mut self) {
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].running.as_ref().is_some_and(|running| running.run.cancelled()) {
                self.take(lane);
            }
        }
    }

    /// Ends all requests with an error.
    pub fn fail_all(&mut self, error: &EngineError) {
        for lane in 0..self.lanes.len() {
            if let Some(running) = self.take(lane) {
                running.run.fail(error.clone());
            }
        }
    }

    /// Frees a lane; what it has decoded stays known.
    fn take(&mut self, lane: usize) -> Option<Running> {
        self.clock += 1;
        self.lanes[lane].last_used = self.clock;
        self.lanes[lane].running.take()
    }

    /// Decodes one batch and lets the lanes whose tokens are all decoded go on.
    pub fn step(&mut self, vocabulary: &Vocabulary, grammars: &mut Grammars) {
        let work: Vec<_> = (0..)
            .zip(&self.lanes)
            .filter_map(|(lane, state)| {
                let running = state.running.as_ref()?;
                let prefill = state.cached.len() < running.prompt;
                Some(Work { lane, age: running.age, pending: running.pending.len(), prefill })
            })
            .collect();
        let slices = plan(&work, CAPACITY);
        if slices.is_empty() {
            return;
        }
        self.batch.clear();
        let mut ready = Vec::new();
        for slice in &slices {
            let Lane { cached, running: Some(running), .. } = &mut self.lanes[slice.lane] else { continue };
            let whole = slice.tokens == running.pending.len();
            for (index, token) in running.pending.drain(..slice.tokens).enumerate() {
                let last = whole && index + 1 == slice.tokens;
                if last {
                    ready.push((slice.lane, self.batch.n_tokens()));
                }
                let position = cached.len() as i32;
                self.batch
                    .add(LlamaToken(token.cast_signed()), position, &[slice.lane as i32], last)
                    .expect("the plan keeps within the batch");
                cached.push(token);
            }
        }
        if let Err(error) = self.context.decode(&mut self.batch) {
            tracing::error!(%error, tokens = self.batch.n_tokens(), "decoding failed");
            for slice in slices {
                self.forget(slice.lane, 0);
                if let Some(running) = self.take(slice.lane) {
                    running.run.fail(EngineError::Internal(format!("llama.cpp can't decode: {error}")));
                }
            }
            return;
        }
        for (lane, row) in ready {
            let Some(running) = &mut self.lanes[lane].running else { continue };
            match running.run.next(self.context.get_logits_ith(row), vocabulary) {
                Step::Decode(tokens) => running.pending = tokens,
                Step::Ended => {
                    if let Some(ended) = self.take(lane)
                        && ended.run.failed()
                        && let Some(session) = ended.run.session()
                    {
                        grammars.forget(session);
                    }
                }
            }
        }
    }
}
