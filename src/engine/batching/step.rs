//! One batch: what goes into it, and what follows from its logits.

use std::time::Instant;

use super::{KvSequence, Lanes, Running, TURN};
use crate::engine::EngineError;
use crate::engine::constraint::Grammars;
use crate::engine::drafting;
use crate::engine::drafting::Draft;
use crate::engine::ffi::DecodeError;
use crate::engine::heartbeat::Heartbeat;
use crate::engine::prefix_cache::{Origin, shared};
use crate::engine::scheduler::{LONG, Price, Slice, Work, plan};
use crate::engine::sequence::Step;
use crate::engine::spokes::SpokeUse;
use crate::engine::vocabulary::Vocabulary;

impl<'a> Lanes<'a> {
    /// Removes all spokes from the context.
    pub fn detach(&mut self) {
        self.context.set_felix(&[]);
        if let Err(error) = self.context.set_adapters(&[]) {
            tracing::error!(%error, "spokes can't be detached");
        }
    }

    /// Sets the LoRA adapters of this request for all lanes, and for each lane its own Felix spoke.
    fn attach(&mut self, spokes: &SpokeUse<'a>) -> Result<(), DecodeError> {
        let felix = |(id, kv): (u32, &KvSequence<'a>)| {
            let (weights, scale) = kv.running.as_ref()?.spokes.felix()?;
            Some((id, weights, scale))
        };
        let uses: Vec<_> = (0..).zip(&self.kv).filter_map(felix).collect();
        self.context.set_adapters(&spokes.adapters())?;
        self.context.set_felix(&uses);
        Ok(())
    }

    /// Chooses the LoRAs whose requests are computed now. Sets of LoRAs take turns, each for a
    /// while, because a change of adapters makes llama.cpp plan its graphs anew. Felix spokes need
    /// no turns: requests with any of them are computed together.
    fn turn(&mut self) -> Option<SpokeUse<'a>> {
        let running = || self.kv.iter().filter_map(|kv| kv.running.as_ref());
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
        let drafts: Vec<Draft> = self.kv.iter().map(|kv| self.draft(kv)).collect();
        let work: Vec<_> = (0..)
            .zip(&self.kv)
            .filter_map(|(lane, kv)| {
                let running = kv.running.as_ref()?;
                if running.follow.is_some() || running.spokes.loras != self.turn {
                    return None;
                }
                let pending = running.pending.len().min(running.until_head(kv.cached.len()));
                Some(Work {
                    lane,
                    age: running.age,
                    pending,
                    guesses: self.chances.of(&drafts[lane]),
                    // Padding can't be removed from a recurrent state.
                    room: if self.partial { self.cells - kv.cached.len() } else { pending },
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
            let KvSequence { cached, running: Some(running), .. } = &mut self.kv[slice.lane] else {
                continue;
            };
            if !running.sequence.has_read_prompt() {
                running.sequence.report_read(cached.len());
            }
        }
        self.keep_heads(slices);
        for slice in slices.iter().filter(|slice| slice.padding > 0) {
            let keep = self.kv[slice.lane].cached.len();
            self.context.forget(slice.lane as u32, keep as u32);
        }
        for (lane, row, guessed) in ready {
            let draft = Draft { tokens: drafts[lane].tokens[..guessed].to_vec(), ..drafts[lane] };
            self.go_on(lane, row, &draft, vocabulary, grammars, heartbeat);
        }
    }

    /// Whether requests that have read their prompts wait for the turn of their LoRAs.
    fn others_decode(&self) -> bool {
        let mut running = self.kv.iter().filter_map(|kv| kv.running.as_ref());
        running.any(|r| r.spokes.loras != self.turn && r.follow.is_none() && r.pending.len() <= LONG)
    }

    /// Computes the batch, and aborts if the clients of all its requests are gone: a share of a
    /// prompt can take long.
    fn decode(&mut self, slices: &[Slice], heartbeat: &Heartbeat<'_>) -> Result<(), DecodeError> {
        let running = slices.iter().filter_map(|slice| self.kv[slice.lane].running.as_ref());
        let listeners: Vec<_> = running.map(|running| running.sequence.listener()).collect();
        let left = || listeners.iter().all(|events| events.is_closed());
        self.context.decode_unless(&self.batch, &heartbeat.unless(left))
    }

    /// Ends requests whose batch was aborted.
    fn give_up(&mut self, slices: &[Slice]) {
        for slice in slices {
            let known = self.kv[slice.lane].cached.len();
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
            let KvSequence { cached, written, running: Some(running), .. } = &mut self.kv[lane] else {
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
        for index in 0..self.kv.len() {
            let running = self.kv[index].running.as_ref();
            if running.is_some_and(|running| running.spokes.loras == self.turn)
                && let Some(running) = self.take(index)
            {
                running.sequence.fail(EngineError::Internal(format!("the spokes can't be set: {reason}")));
            }
        }
    }

    fn fail(&mut self, slices: &[Slice], reason: &str) {
        for slice in slices {
            self.forget(slice.lane, 0);
            if let Some(running) = self.take(slice.lane) {
                running.span.in_scope(|| tracing::error!(reason, "decoding failed"));
                running.sequence.fail(EngineError::Internal(format!("llama.cpp can't decode: {reason}")));
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
        let Some(running) = &mut self.kv[lane].running else { return };
        let span = running.span.clone();
        let _entered = span.enter();
        if !running.sequence.has_read_prompt() {
            tracing::debug!(answer = running.sequence.id(), "prompt decoded");
        }
        running.sequence.count_draft(guesses.len() as u32, 0);
        self.totals.drafts += u64::from(!guesses.is_empty());
        let mut right = 0;
        let mut back = None;
        let ended = loop {
            let logits = self.context.logits(row + right);
            let tokens = match running.sequence.next(logits, vocabulary) {
                Step::Decode(tokens) => tokens,
                Step::Back { drop, tokens } => {
                    back = Some((drop, tokens));
                    break false;
                }
                Step::Ended => break true,
            };
            let agreed = shared(&guesses[right..], &tokens);
            running.sequence.count_draft(0, agreed as u32);
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
            let keep = self.kv[lane].cached.len() - wrong;
            self.forget(lane, keep);
        }
        if let Some((drop, tokens)) = back {
            self.go_back(lane, drop, tokens);
        }
        if ended && let Some(Running { mut sequence, _ticket: ticket, .. }) = self.take(lane) {
            if sequence.failed()
                && let Some(session) = sequence.session()
                && let Some(grammars) = grammars
            {
                grammars.forget(session);
            }
            drop(ticket);
            heartbeat.runs(self.running() as u32, self.totals());
            sequence.conclude();
        }
    }
}
