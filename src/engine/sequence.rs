//! One request while it is answered: budget, constraint, text, events. Knows nothing of llama.cpp: logits in, tokens out.

mod choice;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;

use self::choice::Turns;
use super::constraint::{Session, Shared};
use super::detokenizer::AnswerText;
use super::sampling::Sampler;
use super::vocabulary::{Token, Vocabulary};
use super::{AnswerEvent, EngineError, FinishReason, Generate, TokenLikelihood, TokenReport, Usage};

/// A request in a lane.
#[allow(clippy::struct_excessive_bools, reason = "switches that have nothing to do with each other")]
pub struct Sequence {
    id: String,
    events: mpsc::UnboundedSender<AnswerEvent>,
    sampler: Sampler,
    session: Option<Shared>,
    /// If the answer is closed when tokens run out: with at least so many left, that can be done in any state.
    bound: Option<usize>,
    text: AnswerText,
    /// Tokens that may still be produced.
    left: usize,
    /// Likeliest tokens to report for each token, if a report is wanted.
    report: Option<u32>,
    /// What is known of the token that is being chosen.
    likelihoods: Option<Likelihoods>,
    /// Whether the report is of what the sampler draws from.
    sampled: bool,
    /// Tokens of the prompt that were told to be read, if that is told.
    read: Option<u32>,
    ignore_end: bool,
    /// Whether dictated tokens are taken without asking the model.
    force: bool,
    turns: Turns,
    /// Tokens that have been told, and those that may still be taken back.
    told: usize,
    held: Vec<Piece>,
    usage: Usage,
    begun: Instant,
    prompt_done: Option<Instant>,
    /// The last event, until somebody concludes.
    last: Option<AnswerEvent>,
    failed: bool,
}

/// Tokens of an answer that is kept from going on and on: so many, and two for each token of its
/// prompt. Right encodings, their events included in their prompts, have 2.44 at most.
const LEAST: usize = 300;

/// What follows from a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// These tokens are part of the answer and must be decoded before the next step.
    Decode(Vec<u32>),
    /// The same, after the last `drop` of the tokens that were decoded are forgotten: they are not
    /// part of the answer.
    Back {
        /// How many.
        drop: usize,
        /// What comes in their place; at least one.
        tokens: Vec<u32>,
    },
    /// The answer is whole, or it failed; [`Sequence::conclude`] says so.
    Ended,
}

/// What a step adds to the answer, after it has taken back some of it.
struct Added {
    drop: usize,
    tokens: Vec<u32>,
    /// The first so many were chosen by the model.
    sampled: usize,
    /// Whether they are the last.
    end: Option<FinishReason>,
}

/// A token of the answer that isn't told yet.
#[derive(Debug)]
struct Piece {
    id: u32,
    forced: bool,
    report: Option<TokenReport>,
}

impl Sequence {
    /// Begins an answer to `prompt` of at most `budget` tokens (at least 1); [`Usage`] has what is known of the prompt.
    ///
    /// # Errors
    /// [`EngineError::BudgetTooSmall`]; a constraint that gives up. No event has been sent then.
    pub fn new(
        request: &Generate,
        prompt: &[u32],
        events: mpsc::UnboundedSender<AnswerEvent>,
        mut session: Option<Session>,
        budget: usize,
        usage: Usage,
    ) -> Result<Self, EngineError> {
        if let Some(session) = &mut session {
            let needed = if session.closes() { session.closing()?.len() } else { 0 };
            if needed > budget {
                return Err(EngineError::BudgetTooSmall { needed: needed as u32, given: budget as u32 });
            }
            session.set_budget(budget);
            let prompt_tokens = prompt.len();
            if let Some(guard) = &request.guard {
                let prompt: String = request.prompt.iter().map(|segment| segment.text.as_str()).collect();
                session.guard(guard, 2 * prompt_tokens + LEAST, prompt.into());
            }
        }
        // A stop text would cut JSON in two, and who asks for JSON wants to read it: the shape alone says where it ends. Other
        // shapes are cut where tokens run out, too.
        let closes = session.as_ref().is_some_and(Session::closes);
        let bound = session.as_ref().filter(|session| session.closes()).map(Session::bound);
        let stops = if closes { &[][..] } else { &request.stop };
        let text = AnswerText::new(stops);
        let sampler = Sampler::new(request.sampling, &request.logit_bias, prompt);
        Ok(Self {
            id: request.id.clone(),
            events,
            sampler,
            session: session.map(|session| Arc::new(Mutex::new(session))),
            bound,
            text,
            left: budget,
            report: request.report,
            likelihoods: None,
            sampled: request.sampled,
            read: request.progress.then_some(usage.cached_tokens),
            ignore_end: request.ignore_end,
            force: true,
            turns: Turns::new(budget),
            told: 0,
            held: Vec::new(),
            usage,
            begun: Instant::now(),
            prompt_done: None,
            last: None,
            failed: false,
        })
    }

    /// Asks the model also for tokens that the constraint dictates.
    #[must_use]
    pub fn without_force(self) -> Self {
        Self { force: false, ..self }
    }

    /// Says that the request is accepted, and gives the tokens that the constraint dictates before any choice; they are
    /// decoded together with the prompt.
    pub fn start(&mut self, vocabulary: &Vocabulary) -> Step {
        let (prompt_tokens, cached_tokens) = (self.usage.prompt_tokens, self.usage.cached_tokens);
        let _ = self.events.send(AnswerEvent::Started { prompt_tokens, cached_tokens });
        let Some(session) = self.session.clone() else { return Step::Decode(Vec::new()) };
        let added = self.dictated(&mut lock(&session));
        self.add(added, vocabulary)
    }

    /// The request's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the prompt is read and something was chosen.
    pub fn speaks(&self) -> bool {
        self.prompt_done.is_some()
    }

    /// What it has cost so far.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Tokens that may still be produced.
    pub fn left(&self) -> usize {
        self.left
    }

    /// More of the prompt was known than was thought at first.
    pub fn count_cached(&mut self, tokens: u32) {
        self.usage.cached_tokens += tokens;
    }

    /// Guesses that were decoded, and guesses that turned out right.
    pub fn count_draft(&mut self, drafted: u32, accepted: u32) {
        self.usage.drafted_tokens += drafted;
        self.usage.accepted_tokens += accepted;
    }

    /// So many tokens of the prompt and of what follows it are decoded.
    pub fn tell_read(&mut self, decoded: usize) {
        let now = self.usage.prompt_tokens.min(u32::try_from(decoded).unwrap_or(u32::MAX));
        if let Some(read) = self.read.as_mut().filter(|read| **read < now) {
            *read = now;
            let _ = self.events.send(AnswerEvent::Read(now));
        }
    }

    /// Whether nobody waits for the answer any more.
    pub fn cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Who waits for the answer.
    pub fn listener(&self) -> &mpsc::UnboundedSender<AnswerEvent> {
        &self.events
    }

    /// Ends the answer with an error.
    pub fn fail(self, error: EngineError) {
        let _ = self.events.send(AnswerEvent::Failed(error));
    }

    /// Sends the last event of an answer that has ended. Its lane is free by then, and seen to be.
    pub fn conclude(&mut self) {
        if let Some(last) = self.last.take() {
            let _ = self.events.send(last);
        }
    }

    /// Whether the last step ended in an error.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// The constraint, to be dropped from the cache if it is the cause of an error.
    pub fn session(&self) -> Option<MutexGuard<'_, Session>> {
        self.session.as_ref().map(lock)
    }

    /// The constraint, for somebody to look ahead in while the model computes, and whether a way to the end will be wanted.
    pub fn ahead(&self) -> Option<(&Shared, bool)> {
        Some((self.session.as_ref()?, self.is_near(self.left)))
    }

    /// Whether the way to the end must be known with so many tokens left: behind the next choice,
    /// it may be the only one.
    fn is_near(&self, left: usize) -> bool {
        self.bound.is_some_and(|bound| left <= bound.saturating_add(1))
    }

    /// Goes on with the logits behind the last decoded token.
    pub fn next(&mut self, logits: &[f32], vocabulary: &Vocabulary) -> Step {
        self.prompt_done.get_or_insert_with(Instant::now);
        self.likelihoods = self.report.filter(|_| !self.sampled).map(|top| Likelihoods::of(logits, top));
        let added = match self.session.clone() {
            Some(session) => self.choose_constrained(&mut lock(&session), logits, vocabulary),
            None => self.choose_free(logits, vocabulary),
        };
        self.add(added, vocabulary)
    }

    fn choose_free(&mut self, logits: &[f32], vocabulary: &Vocabulary) -> Result<Added, EngineError> {
        let ends = !self.ignore_end;
        let allowed = |token| vocabulary.speakable(token) && (ends || *vocabulary.token(token) != Token::End);
        self.look_at_sampler(logits, allowed);
        let token = self.sampler.choose(logits, allowed).ok_or_else(no_token)?;
        let end = match vocabulary.token(token) {
            Token::End => Some(FinishReason::Stop),
            _ if self.left == 1 => Some(FinishReason::Length),
            _ => None,
        };
        Ok(Added { drop: 0, tokens: vec![token], sampled: 1, end })
    }

    /// Notes what the sampler draws from, if that is reported.
    fn look_at_sampler(&mut self, logits: &[f32], allowed: impl Fn(u32) -> bool) {
        if let Some(top) = self.report.filter(|_| self.sampled) {
            let kept = self.sampler.shares(logits, allowed);
            self.likelihoods = Some(Likelihoods::of_shares(logits.len(), &kept, top));
        }
    }

    /// What is to be told of these tokens, the first `sampled` of which were chosen.
    fn pieces(&mut self, tokens: &[u32], sampled: usize, vocabulary: &Vocabulary) -> Vec<Piece> {
        let likelihoods = self.likelihoods.take();
        let report = |id: u32, forced: bool| match &likelihoods {
            Some(likelihoods) if !forced => TokenReport {
                token: likelihoods.token(id, vocabulary),
                forced: false,
                top: likelihoods.top.iter().map(|&id| likelihoods.token(id, vocabulary)).collect(),
            },
            _ => {
                let token = TokenLikelihood { id, bytes: vocabulary.name(id).to_vec(), logprob: 0.0 };
                TokenReport { top: vec![], forced: true, token }
            }
        };
        let wanted = self.report.is_some();
        let piece = |(index, &id): (usize, &u32)| {
            let forced = index >= sampled;
            Piece { id, forced, report: wanted.then(|| report(id, forced)) }
        };
        tokens.iter().enumerate().map(piece).collect()
    }

    /// Takes the last tokens back, which have not been told.
    fn take_back(&mut self, drop: usize) {
        let keep = self.held.len().saturating_sub(drop);
        for piece in self.held.drain(keep..) {
            self.left += 1;
            self.usage.completion_tokens -= 1;
            self.usage.forced_tokens -= u32::from(piece.forced);
        }
    }

    /// Tells tokens that are certain, and gives their text.
    fn tell(&mut self, count: usize, vocabulary: &Vocabulary) -> String {
        let certain: Vec<Piece> = self.held.drain(..count).collect();
        self.told += count;
        let text = certain.iter().map(|piece| self.text.push(vocabulary.bytes(piece.id))).collect();
        let reports: Vec<TokenReport> = certain.into_iter().filter_map(|piece| piece.report).collect();
        if !reports.is_empty() {
            let _ = self.events.send(AnswerEvent::Tokens(reports));
        }
        text
    }

    /// Sends the text of what was added, as far as it is certain, and the last event if it was the
    /// last.
    fn add(&mut self, added: Result<Added, EngineError>, vocabulary: &Vocabulary) -> Step {
        let Added { drop, tokens, sampled, mut end } = match added {
            Ok(added) => added,
            Err(error) => {
                self.failed = true;
                self.last = Some(AnswerEvent::Failed(error));
                return Step::Ended;
            }
        };
        if end == Some(FinishReason::Stop) && self.session().is_some_and(|session| session.is_cut()) {
            // Not all that it would have said is there.
            end = Some(FinishReason::Length);
        }
        if drop > self.held.len() {
            // A defect, which must not become an answer that says what the model never did.
            self.failed = true;
            let message = "tokens that were told can't be taken back".to_owned();
            self.last = Some(AnswerEvent::Failed(EngineError::Internal(message)));
            return Step::Ended;
        }
        self.take_back(drop);
        self.left -= tokens.len().min(self.left);
        self.sampler.used(&tokens);
        let pieces = self.pieces(&tokens, sampled, vocabulary);
        self.held.extend(pieces);
        self.usage.completion_tokens += tokens.len() as u32;
        self.usage.forced_tokens += (tokens.len() - sampled) as u32;
        let uncertain = self.session().filter(|_| end.is_none()).and_then(|session| session.uncertain());
        let certain =
            uncertain.map_or(self.held.len(), |from| from.saturating_sub(self.told).min(self.held.len()));
        let mut text = self.tell(certain, vocabulary);
        if let Some(stop) = self.text.stopped() {
            self.usage.stopped_by = Some(stop);
            end = Some(FinishReason::Stop);
        }
        if end.is_some() {
            text += &self.text.finish();
        }
        if !text.is_empty() {
            let _ = self.events.send(AnswerEvent::Text(text));
        }
        let Some(reason) = end else {
            return if drop == 0 { Step::Decode(tokens) } else { Step::Back { drop, tokens } };
        };
        for closed in self.turns.closed() {
            let _ = self.events.send(AnswerEvent::Closed(closed));
        }
        let now = Instant::now();
        let prompt_done = self.prompt_done.unwrap_or(now);
        let milliseconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        self.usage.prompt_ms = milliseconds(self.begun, prompt_done);
        self.usage.predicted_ms = milliseconds(prompt_done, now);
        self.last = Some(AnswerEvent::Finished { reason, usage: self.usage });
        Step::Ended
    }
}

/// Probabilities of all tokens at one place.
struct Likelihoods {
    logits: Vec<f32>,
    /// Logarithm of the sum of all exponentials.
    total: f32,
    top: Vec<u32>,
}

impl Likelihoods {
    fn of(logits: &[f32], top: u32) -> Self {
        let best = logits.iter().copied().filter(|logit| !logit.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 =
            logits.iter().map(|&logit| f64::from(logit - best).exp()).filter(|e| !e.is_nan()).sum();
        let top = (top as usize).min(logits.len());
        let all = if top == 0 { 0 } else { logits.len() as u32 };
        let mut order: Vec<u32> = (0..all).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if top > 0 && top < order.len() {
            order.select_nth_unstable_by(top - 1, by_logit);
        }
        order.truncate(top);
        order.sort_by(by_logit);
        Self { logits: logits.to_vec(), total: best + sum.ln() as f32, top: order }
    }

    /// Of tokens that are drawn with these shares, the largest first; all others are never drawn.
    fn of_shares(tokens: usize, shares: &[(u32, f64)], top: u32) -> Self {
        let mut logits = vec![f32::NEG_INFINITY; tokens];
        for &(token, share) in shares {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = share.ln() as f32;
            }
        }
        let top = shares.iter().take(top as usize).map(|&(token, _)| token).collect();
        Self { logits, total: 0.0, top }
    }

    fn token(&self, id: u32, vocabulary: &Vocabulary) -> TokenLikelihood {
        let logit = self.logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        // JSON has no infinity.
        let logprob = (logit - self.total).clamp(-1e4, 0.0);
        TokenLikelihood { id, bytes: vocabulary.name(id).to_vec(), logprob }
    }
}

/// A lock that a panic has poisoned is as good as any: llguidance's panics are caught where they happen.
fn lock(session: &Shared) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_token() -> EngineError {
    EngineError::NotFinite
}
