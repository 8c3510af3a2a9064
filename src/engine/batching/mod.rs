//! The lanes: requests that are decoded together, each in its own sequence of llama.cpp. There may
//! be more sequences than lanes; the others keep keys and values for later requests (see
//! [`super::prefix_cache`]).

mod prefix_reuse;
mod room;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use llama_cpp_2::model::LlamaModel;
use tracing::Span;

pub use self::room::room;
use self::room::{is_partial, sequences, warm_up};
use super::constraint::Grammars;
use super::drafting::{self, Chances, Cost, Draft};
use super::ffi::{Batch, Context, ContextSettings, DecodeError};
use super::handle::{LlamaSettings, Ticket};
use super::heartbeat::Heartbeat;
use super::kernels::Kernels;
use super::prefix_cache::{NO_SPOKE, Origin, Placement, shared};
use super::scheduler::{BATCH, LONG, Price, Slice, Work, plan};
use super::sequence::{Sequence, Step};
use super::spokes::SpokeUse;
use super::thread_tuner::ThreadTuner;
use super::vocabulary::Vocabulary;
use super::{EngineError, LaneState, Totals, Usage};

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
    sequences: Vec<Lane<'a>>,
    /// Number of requests that run at the same time.
    lanes: usize,
    /// Number of KV cache cells of each sequence.
    places: usize,
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

#[derive(Default)]
struct Lane<'a> {
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
    run: Sequence,
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
    pub run: Sequence,
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
        settings: &LlamaSettings,
        context: u32,
        kernels: Kernels,
    ) -> Result<Self, String> {
        let lanes = settings.lanes.max(1);
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
        let (places, threads) = (made.tokens(), made.threads());
        let cache_size = places as u64 * u64::from(sequences);
        let copying =
            if made.is_sparse() { COPY } else { place_bytes as f64 * places as f64 / COPIED_PER_SECOND };
        Ok(Self {
            context: made,
            tuner: ThreadTuner::new(threads, Instant::now()),
            batch: Batch::default(),
            sequences: (0..sequences).map(|_| Lane::default()).collect(),
            lanes: lanes as usize,
            places,
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
        let mut order: Vec<_> = self.sequences.iter().collect();
        order.sort_by_key(|sequence| (sequence.running.is_none(), std::cmp::Reverse(sequence.last_used)));
        let state = |(lane, sequence): (u32, &Lane<'a>)| {
            let run = sequence.running.as_ref().map(|running| &running.run);
            LaneState {
                lane,
                request: run.map(|run| run.id().to_owned()),
                task: sequence.running.as_ref().map_or(0, |running| running.age),
                prompt_tokens: run.map_or(0, |run| run.usage().prompt_tokens),
                completion_tokens: run.map_or(0, |run| run.usage().completion_tokens),
                cached_tokens: run.map_or(0, |run| run.usage().cached_tokens),
            }
        };
        (0..).zip(order.into_iter().take(self.lanes)).map(state).collect()
    }

    /// Counters since the start.
    pub fn totals(&self) -> Totals {
        let cache_used = self.sequences.iter().map(|sequence| sequence.cached.len() as u64).sum();
        Totals { cache_used, ..self.totals }
    }

    /// Number of requests in lanes.
    pub fn running(&self) -> usize {
        self.sequences.iter().filter(|sequence| sequence.running.is_some()).count()
    }

    /// Whether a lane is free.
    pub fn has_free(&self) -> bool {
        self.running() < self.lanes
    }

    /// Starts a request in its lane.
    pub fn start(&mut self, placement: Placement, entry: Entry<'a>, words: &Vocabulary) {
        let Entry { prompt, head, mut run, spokes, drafts, ticket, span } = entry;
        let Step::Decode(dictated) = run.start(words) else {
            self.count_answer(run.usage());
            drop(ticket);
            return run.conclude();
        };
        let Placement { target, known, source, follow, mark } = placement;
        self.totals.cache_evictions += u64::from(known == 0 && !self.sequences[target].cached.is_empty());
        self.clock += 1;
        let age = self.clock;
        if target == source {
            self.forget(target, known);
        } else {
            self.copy(source, target, known);
            if known > 0 {
                self.sequences[source].last_used = age;
            }
        }
        let heads = if self.partial { vec![] } else { [head, mark].into_iter().flatten().collect() };
        if let Some((leader, length)) = follow.filter(|_| !self.partial)
            && let Some(leader) = &mut self.sequences[leader].running
        {
            leader.heads.push(length);
        }
        let sequence = &mut self.sequences[target];
        self.totals.cached_tokens += sequence.cached.len() as u64;
        let mut planned = prompt;
        planned.extend(dictated);
        let pending = planned[sequence.cached.len()..].to_vec();
        sequence.origin = spokes.origin;
        sequence.kept = false;
        sequence.running = Some(Running {
            run,
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
        for index in 0..self.sequences.len() {
            if self.sequences[index].running.as_ref().is_some_and(|running| running.run.cancelled()) {
                self.take(index);
            }
        }
    }

    /// Ends all requests with an error.
    pub fn fail_all(&mut self, error: &EngineError) {
        for index in 0..self.sequences.len() {
            if let Some(running) = self.take(index) {
                running.run.fail(error.clone());
            }
        }
    }

    /// Frees a lane. What it has decoded stays in the KV cache.
    fn take(&mut self, index: usize) -> Option<Running<'a>> {
        self.clock += 1;
        self.sequences[index].last_used = self.clock;
        let running = self.sequences[index].running.take()?;
        let usage = running.run.usage();
        running.span.in_scope(|| {
            tracing::debug!(answer = running.run.id(), tokens = usage.completion_tokens, "its lane is free");
        });
        self.count_answer(usage);
        self.give_back(index);
        Some(running)
    }

    /// Gives the memory after the cached tokens of an idle sequence back to the system, if an
    /// earlier request has left much of it.
    fn give_back(&mut self, index: usize) {
        let sequence = &mut self.sequences[index];
        let held = sequence.cached.len();
        let spare = sequence.written.saturating_sub(held) as u64 * self.totals.place_bytes;
        if spare >= SPARE && self.context.give_back(index as u32, held as u32) {
            sequence.written = held;
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
    fn draft(&self, sequence: &Lane<'a>) -> Draft {
        let Some(running) = sequence.running.as_ref().filter(|running| running.drafts && self.partial) else {
            return Draft::default();
        };
        if sequence.cached.len() + running.pending.len() < running.planned.len() + 1 {
            return Draft::default();
        }
        let text: Vec<u32> = sequence.cached.iter().chain(&running.pending).copied().collect();
        drafting::look_up(&text, drafting::MOST.min(running.run.left()))
    }

    /// Removes all spokes from the context.
    pub fn detach(&mut self) {
        self.context.set_felix(&[]);
        if let Err(error) = self.context.set_adapters(&[]) {
            tracing::error!(%error, "spokes can't be detached");
        }
    }

    /// Sets the LoRA adapters of this request for all lanes, and for each lane its own Felix spoke.
    fn attach(&mut self, spokes: &SpokeUse<'a>) -> Result<(), DecodeError> {
        let felix = |(id, sequence): (u32, &Lane<'a>)| {
            let (weights, scale) = sequence.running.as_ref()?.spokes.felix()?;
            Some((id, weights, scale))
        };
        let uses: Vec<_> = (0..).zip(&self.sequences).filter_map(felix).collect();
        self.context.set_adapters(&spokes.adapters())?;
        self.context.set_felix(&uses);
        Ok(())
    }

    /// Chooses the LoRAs whose requests are computed now. Sets of LoRAs take turns, each for a
    /// while, because a change of adapters makes llama.cpp plan its graphs anew. Felix spokes need
    /// no turns: requests with any of them are computed together.
    fn turn(&mut self) -> Option<SpokeUse<'a>> {
        let running = || self.sequences.iter().filter_map(|sequence| sequence.running.as_ref());
        let origins: Vec<(Origin, u64)> =
            running().filter(|r| r.follow.is_none()).map(|r| (r.spokes.loras, r.age)).collect();
        let now = Instant::now();
        let goes_on = now < self.turn_ends && origins.iter().any(|(origin, _)| *origin == self.turn);
        let alone = origins.iter().all(|(origin, _)| *origin == self.turn);
        if !goes_on && !alone {
            // Choose the set that has waited longest. Among sets that never had a turn, the oldest
            // request wins.
            let (next, _) = origins
                .iter()
                .filter(|(origin, _)| *origin != self.turn)
                .min_by_key(|(origin, age)| (self.turns.get(origin).copied().unwrap_or(0), *age))?;
            self.turn = *next;
            self.turn_ends = now + TURN;
            self.clock += 1;
            self.turns.insert(self.turn, self.clock);
            // Forget sets without a running request.
            self.turns.retain(|origin, _| origins.iter().any(|(other, _)| other == origin));
        }
        running().find(|r| r.spokes.loras == self.turn).map(|r| r.spokes.clone())
    }

    /// Decodes one batch for each group of lanes and continues the lanes whose tokens are all
    /// decoded.
    pub fn step(&mut self, vocabulary: &Vocabulary, grammars: Option<&Grammars>, heartbeat: &Heartbeat<'_>) {
        self.catch_up();
        let Some(spokes) = self.turn() else { return };
        if let Err(error) = self.attach(&spokes) {
            return self.fail_turn(&error.to_string());
        }
        let drafts: Vec<Draft> = self.sequences.iter().map(|sequence| self.draft(sequence)).collect();
        let work: Vec<_> = (0..)
            .zip(&self.sequences)
            .filter_map(|(lane, sequence)| {
                let running = sequence.running.as_ref()?;
                if running.follow.is_some() || running.spokes.loras != self.turn {
                    return None;
                }
                let pending = running.pending.len().min(running.until_head(sequence.cached.len()));
                Some(Work {
                    lane,
                    age: running.age,
                    pending,
                    guesses: self.chances.of(&drafts[lane]),
                    // Padding can't be removed from a recurrent state.
                    room: if self.partial { self.places - sequence.cached.len() } else { pending },
                })
            })
            .collect();
        if self.totals.decodes % 512 == 1 {
            let chances = [2, 3, 4, 6, 8, 16].map(|length| self.chances.right(length));
            let milliseconds = [1, 2, 4, 8, 16].map(|tokens| self.cost.batch(tokens) * 1e3);
            tracing::debug!(?milliseconds, ?chances, "what batches cost and how often guesses are right");
        }
        for slices in plan(&work, self.others_decode(), &self.cost) {
            self.call(&slices, &drafts, vocabulary, grammars, heartbeat);
        }
    }

    fn call(
        &mut self,
        slices: &[Slice],
        drafts: &[Draft],
        vocabulary: &Vocabulary,
        grammars: Option<&Grammars>,
        heartbeat: &Heartbeat<'_>,
    ) {
        let (ready, prompt) = self.fill(slices, drafts);
        let price = self.cost.batch(self.batch.len());
        self.totals.threads = self.tuner.lead(&mut self.context, price);
        let began = Instant::now();
        let decoded = self.decode(slices, heartbeat);
        if decoded.is_err() {
            self.tuner.interrupted(Instant::now());
        }
        match decoded {
            Ok(()) => {}
            Err(DecodeError::GivenUp) => return self.give_up(slices),
            Err(error) => {
                tracing::error!(%error, tokens = self.batch.len(), "decoding failed");
                return self.fail(slices, &error.to_string());
            }
        }
        self.count(slices.len(), prompt, price, began.elapsed().as_secs_f64());
        for slice in slices {
            let Lane { cached, running: Some(running), .. } = &mut self.sequences[slice.lane] else {
                continue;
            };
            if !running.run.speaks() {
                running.run.tell_read(cached.len());
            }
        }
        self.keep_heads(slices);
        for slice in slices.iter().filter(|slice| slice.padding > 0) {
            let keep = self.sequences[slice.lane].cached.len();
            self.context.forget(slice.lane as u32, keep as u32);
        }
        for (lane, row, guessed) in ready {
            let draft = Draft { tokens: drafts[lane].tokens[..guessed].to_vec(), ..drafts[lane] };
            self.go_on(lane, row, &draft, vocabulary, grammars, heartbeat);
        }
    }

    /// Whether requests that have read their prompts wait for the turn of their LoRAs.
    fn others_decode(&self) -> bool {
        let mut running = self.sequences.iter().filter_map(|sequence| sequence.running.as_ref());
        running.any(|r| r.spokes.loras != self.turn && r.follow.is_none() && r.pending.len() <= LONG)
    }

    /// Computes the batch, and aborts if the clients of all its requests are gone: a share of a
    /// prompt can take long.
    fn decode(&mut self, slices: &[Slice], heartbeat: &Heartbeat<'_>) -> Result<(), DecodeError> {
        let running = slices.iter().filter_map(|slice| self.sequences[slice.lane].running.as_ref());
        let listeners: Vec<_> = running.map(|running| running.run.listener()).collect();
        let left = || listeners.iter().all(|events| events.is_closed());
        self.context.decode_unless(&self.batch, &heartbeat.unless(left))
    }

    /// Ends requests whose batch was aborted.
    fn give_up(&mut self, slices: &[Slice]) {
        for slice in slices {
            let known = self.sequences[slice.lane].cached.len();
            self.forget(slice.lane, known - slice.certain - slice.guessed);
            self.take(slice.lane);
        }
    }

    /// Puts the slices into the batch. Returns the lanes that can continue after it, each with the
    /// row of its first logits and its number of draft tokens, and the number of prompt tokens.
    fn fill(&mut self, slices: &[Slice], drafts: &[Draft]) -> (Vec<(usize, usize, usize)>, usize) {
        self.batch.clear();
        let (mut ready, mut prompt) = (Vec::new(), 0);
        for &Slice { lane, certain, guessed, padding } in slices {
            let Lane { cached, written, running: Some(running), .. } = &mut self.sequences[lane] else {
                continue;
            };
            prompt += running.planned.len().saturating_sub(cached.len()).min(certain);
            let whole = certain == running.pending.len();
            let guesses = drafts[lane].tokens.iter().take(guessed).copied();
            for (index, token) in running.pending.drain(..certain).chain(guesses).enumerate() {
                if whole && index + 1 == certain {
                    ready.push((lane, self.batch.len(), guessed));
                }
                self.batch.push(token, cached.len() as u32, lane as u32, whole && index + 1 >= certain);
                cached.push(token);
            }
            // Any token works as padding: its logits are not read, and it is removed right after
            // the batch.
            let last = cached.last().copied().unwrap_or(0);
            for index in 0..padding {
                self.batch.push(last, (cached.len() + index) as u32, lane as u32, false);
            }
            *written = (*written).max(cached.len() + padding);
        }
        (ready, prompt)
    }

    fn count(&mut self, lanes: usize, prompt: usize, price: f64, seconds: f64) {
        let tokens = self.batch.len();
        self.totals.decodes += 1;
        self.totals.busy_lanes += lanes as u64;
        self.totals.prompt_tokens += prompt as u64;
        if prompt == 0 {
            self.totals.predicted_seconds += seconds;
        } else {
            self.totals.prompt_seconds += seconds;
        }
        // A batch with an unusual number of threads says nothing about usual cost.
        if !self.tuner.is_trying() {
            if prompt == 0 {
                self.cost.learn(tokens, seconds);
            }
            if prompt > drafting::MOST {
                self.cost.learn_prompt(prompt, seconds);
            }
        }
        self.tuner.worked(price, seconds, Instant::now());
    }

    /// Ends the requests whose turn it is with an error.
    fn fail_turn(&mut self, reason: &str) {
        for index in 0..self.sequences.len() {
            let running = self.sequences[index].running.as_ref();
            if running.is_some_and(|running| running.spokes.loras == self.turn)
                && let Some(running) = self.take(index)
            {
                running.run.fail(EngineError::Internal(format!("the spokes can't be set: {reason}")));
            }
        }
    }

    fn fail(&mut self, slices: &[Slice], reason: &str) {
        for slice in slices {
            self.forget(slice.lane, 0);
            if let Some(running) = self.take(slice.lane) {
                running.span.in_scope(|| tracing::error!(reason, "decoding failed"));
                running.run.fail(EngineError::Internal(format!("llama.cpp can't decode: {reason}")));
            }
        }
    }

    /// Chooses the token after the last certain one, and goes on after each draft token that equals
    /// the choice. The answer is the same as without drafting.
    fn go_on(
        &mut self,
        lane: usize,
        row: usize,
        draft: &Draft,
        vocabulary: &Vocabulary,
        grammars: Option<&Grammars>,
        heartbeat: &Heartbeat<'_>,
    ) {
        let guesses = &draft.tokens;
        let Some(running) = &mut self.sequences[lane].running else { return };
        let span = running.span.clone();
        let _entered = span.enter();
        if !running.run.speaks() {
            tracing::debug!(answer = running.run.id(), "prompt decoded");
        }
        running.run.count_draft(guesses.len() as u32, 0);
        self.totals.drafts += u64::from(!guesses.is_empty());
        let mut right = 0;
        let mut back = None;
        let ended = loop {
            let logits = self.context.logits(row + right);
            let tokens = match running.run.next(logits, vocabulary) {
                Step::Decode(tokens) => tokens,
                Step::Back { drop, tokens } => {
                    back = Some((drop, tokens));
                    break false;
                }
                Step::Ended => break true,
            };
            let agreed = shared(&guesses[right..], &tokens);
            running.run.count_draft(0, agreed as u32);
            for index in right..right + agreed {
                self.chances.learn(draft.matched + index, true);
            }
            right += agreed;
            if agreed < tokens.len() {
                if right < guesses.len() {
                    self.chances.learn(draft.matched + right, false);
                }
                running.pending = tokens[agreed..].to_vec();
                break false;
            }
        };
        let wrong = guesses.len() - right;
        if wrong > 0 {
            let keep = self.sequences[lane].cached.len() - wrong;
            self.forget(lane, keep);
        }
        if let Some((drop, tokens)) = back {
            self.go_back(lane, drop, tokens);
        }
        if ended && let Some(Running { mut run, _ticket: ticket, .. }) = self.take(lane) {
            if run.failed()
                && let Some(session) = run.session()
                && let Some(grammars) = grammars
            {
                grammars.forget(session);
            }
            drop(ticket);
            heartbeat.runs(self.running() as u32, self.totals());
            run.conclude();
        }
    }
}
