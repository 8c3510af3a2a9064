//! Lanes: requests that are decoded together, each in a sequence of llama.cpp. There may be more sequences than lanes: what
//! the others hold is known to later requests (see [`super::cache`]).

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
use super::foresight::Foresight;
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

/// Bytes of keys and values copied in a second, as a cautious guess.
const COPIED_PER_SECOND: f64 = 2e9;
/// Seconds that a copy takes however short it is.
const COPY: f64 = 1e-4;
/// Bytes that are worth giving back to the system.
const SPARE: u64 = 1 << 20;

/// How long one set of LoRAs is computed while others wait.
const TURN: Duration = Duration::from_millis(50);

/// All lanes and the context that they share.
pub struct Lanes<'a> {
    context: Context<'a>,
    tuner: ThreadTuner,
    foresight: Foresight,
    batch: Batch,
    sequences: Vec<Lane<'a>>,
    /// Requests that run at the same time.
    lanes: usize,
    /// Places of each sequence.
    places: usize,
    /// Seconds to copy a sequence, however much of it is wanted.
    copying: f64,
    /// Whether a prefix of a sequence can be used without the rest.
    partial: bool,
    clock: u64,
    /// With which LoRAs requests are computed now, until when, and when each other one last had its turn.
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
    /// Places that may have memory: those that were written since memory was given back last.
    written: usize,
    origin: Origin,
    last_used: u64,
    /// Whether it holds the head of prompts, for those that begin with it.
    kept: bool,
    running: Option<Running<'a>>,
}

struct Running<'a> {
    run: Sequence,
    age: u64,
    /// The prompt, dictated beginning of the answer included.
    planned: Vec<u32>,
    /// Tokens that are to be decoded.
    pending: Vec<u32>,
    /// A sequence that is about to hold this many tokens of the prompt.
    follow: Option<(usize, usize)>,
    /// Where what the sequence holds is to be kept for others, in tokens of the prompt.
    heads: Vec<usize>,
    spokes: SpokeUse<'a>,
    drafts: bool,
    span: Span,
    _ticket: Ticket,
}

/// A request as it enters a lane.
pub struct Entry<'a> {
    /// What is to be decoded.
    pub prompt: Vec<u32>,
    /// How much of it other prompts probably begin with too.
    pub head: Option<usize>,
    /// Its answer.
    pub run: Sequence,
    /// What it runs with beside the post.
    pub spokes: SpokeUse<'a>,
    /// Whether tokens are drafted.
    pub drafts: bool,
    /// Held until the end.
    pub ticket: Ticket,
    /// What is logged of it.
    pub span: Span,
}

impl<'a> Lanes<'a> {
    /// Makes the context.
    ///
    /// # Errors
    /// llama.cpp can't, most likely for want of memory.
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
            foresight: Foresight::start(threads),
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

    /// What each lane does: first those that run, then what is known to the next requests.
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

    /// What has been done so far.
    pub fn totals(&self) -> Totals {
        let cache_used = self.sequences.iter().map(|sequence| sequence.cached.len() as u64).sum();
        Totals { cache_used, ..self.totals }
    }

    /// Requests in lanes.
    pub fn running(&self) -> usize {
        self.sequences.iter().filter(|sequence| sequence.running.is_some()).count()
    }

    /// Whether another request can be taken.
    pub fn has_free(&self) -> bool {
        self.running() < self.lanes
    }

    /// Puts a request into its lane.
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

    /// Ends requests that nobody waits for.
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

    /// Frees a lane; what it has decoded stays known.
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

    /// Gives the memory behind what an idle sequence holds back to the system, where earlier
    /// requests have left much.
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

    /// What is guessed to follow in a lane.
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

    /// Computes with no spokes.
    pub fn detach(&mut self) {
        self.context.set_felix(&[]);
        if let Err(error) = self.context.set_adapters(&[]) {
            tracing::error!(%error, "spokes can't be taken off");
        }
    }

    /// Computes with these adapters, and each request that they serve with its own Felix spoke.
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

    /// The LoRAs whose requests are computed now: those that run are so in turn, each for a while, because a change of
    /// adapters makes llama.cpp plan anew. Felix spokes don't: requests with any of them are computed together.
    fn turn(&mut self) -> Option<SpokeUse<'a>> {
        let running = || self.sequences.iter().filter_map(|sequence| sequence.running.as_ref());
        let origins: Vec<(Origin, u64)> =
            running().filter(|r| r.follow.is_none()).map(|r| (r.spokes.loras, r.age)).collect();
        let now = Instant::now();
        let goes_on = now < self.turn_ends && origins.iter().any(|(origin, _)| *origin == self.turn);
        let alone = origins.iter().all(|(origin, _)| *origin == self.turn);
        if !goes_on && !alone {
            // Whoever has waited longest; of those that never had a turn, the oldest request.
            let (next, _) = origins
                .iter()
                .filter(|(origin, _)| *origin != self.turn)
                .min_by_key(|(origin, age)| (self.turns.get(origin).copied().unwrap_or(0), *age))?;
            self.turn = *next;
            self.turn_ends = now + TURN;
            self.clock += 1;
            self.turns.insert(self.turn, self.clock);
            // Sets that nobody runs with any more are forgotten.
            self.turns.retain(|origin, _| origins.iter().any(|(other, _)| other == origin));
        }
        running().find(|r| r.spokes.loras == self.turn).map(|r| r.spokes.clone())
    }

    /// Decodes one batch for each group of lanes and lets those go on whose tokens are all decoded.
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
                    // Padding can't be taken back from a recurrent state.
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
        let sequences = &self.sequences;
        self.foresight
            .look(ready.iter().filter_map(|&(lane, ..)| sequences[lane].running.as_ref()?.run.ahead()));
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

    /// Whether requests wait for their turn that have read their prompts.
    fn others_decode(&self) -> bool {
        let mut running = self.sequences.iter().filter_map(|sequence| sequence.running.as_ref());
        running.any(|r| r.spokes.loras != self.turn && r.follow.is_none() && r.pending.len() <= LONG)
    }

    /// Computes the batch as long as somebody waits for one of its requests: a share of a prompt can take long.
    fn decode(&mut self, slices: &[Slice], heartbeat: &Heartbeat<'_>) -> Result<(), DecodeError> {
        let running = slices.iter().filter_map(|slice| self.sequences[slice.lane].running.as_ref());
        let listeners: Vec<_> = running.map(|running| running.run.listener()).collect();
        let left = || listeners.iter().all(|events| events.is_closed());
        self.context.decode_unless(&self.batch, &heartbeat.unless(left))
    }

    /// Ends requests in the middle of a batch.
    fn give_up(&mut self, slices: &[Slice]) {
        for slice in slices {
            let known = self.sequences[slice.lane].cached.len();
            self.forget(slice.lane, known - slice.certain - slice.guessed);
            self.take(slice.lane);
        }
    }

    /// Puts the slices into the batch; gives the lanes that can go on behind it, each with the row of its first logits and
    /// its guesses, and the number of prompt tokens.
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
            // Any token will do; nothing is read from it, and it is forgotten at once.
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
        // What others than usually have computed tells nothing of what it costs.
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

    /// Ends the requests whose turn it is.
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
                running.span.in_scope(|| tracing::error!(reason, "decoding failed for it"));
                running.run.fail(EngineError::Internal(format!("llama.cpp can't decode: {reason}")));
            }
        }
    }

    /// Lets the model choose behind the last certain token, and behind each guess that it would have chosen itself: the
    /// answer is the one without guesses.
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
            tracing::debug!(answer = running.run.id(), "its prompt is read");
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
                grammars.forget(&session);
            }
            drop(ticket);
            heartbeat.runs(self.running() as u32, self.totals());
            run.conclude();
        }
    }
}
