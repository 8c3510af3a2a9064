//! The state of one request while it is answered: budget, constraint, text and events. Independent
//! of llama.cpp: takes logits and returns tokens.

mod choice;
#[cfg(test)]
mod tests;

use std::time::Instant;

use tokio::sync::mpsc;

use self::choice::Backtracking;
use super::constraint::Session;
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
    session: Option<Session>,
    /// For answers that are closed when tokens run out: with at least this many tokens left, the
    /// answer can be closed from any state.
    bound: Option<usize>,
    text: AnswerText,
    /// Tokens that may still be generated.
    left: usize,
    /// Number of likeliest tokens to report per token, if the request wants a report.
    report: Option<u32>,
    /// Likelihoods at the position of the token that is being chosen.
    likelihoods: Option<Likelihoods>,
    /// Whether to report the distribution that the sampler draws from.
    sampled: bool,
    /// Number of prompt tokens last reported as read, if the request wants progress reports.
    read: Option<u32>,
    ignore_end: bool,
    /// Whether dictated tokens are taken without running the model.
    force: bool,
    backtracking: Backtracking,
    /// Number of tokens whose text was sent, and tokens after them that may still be taken back.
    told: usize,
    held: Vec<Piece>,
    usage: Usage,
    begun: Instant,
    prompt_done: Option<Instant>,
    /// The last event, until [`Sequence::conclude`] sends it.
    last: Option<AnswerEvent>,
    failed: bool,
}

/// A guarded answer may have this many tokens plus two per prompt token. Correct encodings, whose
/// prompts include their events, have at most 2.44 tokens per prompt token.
const LEAST: usize = 300;

/// The result of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// These tokens belong to the answer and must be decoded before the next step.
    Decode(Vec<u32>),
    /// Like `Decode`, but first the last `drop` decoded tokens must be removed, because they no
    /// longer belong to the answer.
    Back {
        /// Number of decoded tokens to remove.
        drop: usize,
        /// Tokens that replace them, at least one.
        tokens: Vec<u32>,
    },
    /// The answer is complete, or it failed. [`Sequence::conclude`] sends the last event.
    Ended,
}

/// What a step adds to the answer, after removing its last `drop` tokens.
struct Added {
    drop: usize,
    tokens: Vec<u32>,
    /// Number of leading tokens that the model chose.
    sampled: usize,
    /// Why the answer ends after these tokens, if it does.
    end: Option<FinishReason>,
}

/// A token of the answer that has not been sent.
#[derive(Debug)]
struct Piece {
    id: u32,
    forced: bool,
    report: Option<TokenReport>,
}

impl Sequence {
    /// Begins an answer to `prompt` with at most `budget` tokens (at least 1). `usage` holds the
    /// figures of the prompt that are already known.
    ///
    /// # Errors
    /// [`EngineError::BudgetTooSmall`]; a constraint that fails. No event has been sent in that
    /// case.
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
        // A stop text would cut the JSON in two and make it unreadable, so only the constraint
        // decides where a JSON answer ends. Answers of other constraints are cut where tokens run
        // out anyway, so they keep their stop texts.
        let closes = session.as_ref().is_some_and(Session::closes);
        let bound = session.as_ref().filter(|session| session.closes()).map(Session::bound);
        let stops = if closes { &[][..] } else { &request.stop };
        let text = AnswerText::new(stops);
        let sampler = Sampler::new(request.sampling, &request.logit_bias, prompt);
        Ok(Self {
            id: request.id.clone(),
            events,
            sampler,
            session,
            bound,
            text,
            left: budget,
            report: request.report,
            likelihoods: None,
            sampled: request.sampled,
            read: request.progress.then_some(usage.cached_tokens),
            ignore_end: request.ignore_end,
            force: true,
            backtracking: Backtracking::new(budget),
            told: 0,
            held: Vec::new(),
            usage,
            begun: Instant::now(),
            prompt_done: None,
            last: None,
            failed: false,
        })
    }

    /// Runs the model also for tokens that the constraint dictates.
    #[must_use]
    pub fn without_force(self) -> Self {
        Self { force: false, ..self }
    }

    /// Announces that the request is accepted, and returns the tokens that the constraint dictates
    /// before any choice. They are decoded together with the prompt.
    pub fn start(&mut self, vocabulary: &Vocabulary) -> Step {
        let (prompt_tokens, cached_tokens) = (self.usage.prompt_tokens, self.usage.cached_tokens);
        let _ = self.events.send(AnswerEvent::Started { prompt_tokens, cached_tokens });
        let Some(mut session) = self.session.take() else { return Step::Decode(Vec::new()) };
        let added = self.dictated(&mut session);
        self.session = Some(session);
        self.add(added, vocabulary)
    }

    /// The request's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the prompt is decoded and a token was chosen.
    pub fn has_read_prompt(&self) -> bool {
        self.prompt_done.is_some()
    }

    /// What the request has cost so far.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Tokens that may still be generated.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Adds prompt tokens that were found in the KV cache after the request started.
    pub fn count_cached(&mut self, tokens: u32) {
        self.usage.cached_tokens += tokens;
    }

    /// Adds draft tokens that were decoded, and those that were accepted.
    pub fn count_draft(&mut self, drafted: u32, accepted: u32) {
        self.usage.drafted_tokens += drafted;
        self.usage.accepted_tokens += accepted;
    }

    /// Reports progress: `decoded` tokens of the prompt and of what follows it are decoded.
    pub fn report_read(&mut self, decoded: usize) {
        let now = self.usage.prompt_tokens.min(u32::try_from(decoded).unwrap_or(u32::MAX));
        if let Some(read) = self.read.as_mut().filter(|read| **read < now) {
            *read = now;
            let _ = self.events.send(AnswerEvent::Read(now));
        }
    }

    /// Whether the client has stopped listening for the answer.
    pub fn cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// The channel to the client.
    pub fn listener(&self) -> &mpsc::UnboundedSender<AnswerEvent> {
        &self.events
    }

    /// Ends the answer with an error.
    pub fn fail(self, error: EngineError) {
        let _ = self.events.send(AnswerEvent::Failed(error));
    }

    /// Sends the last event of an ended answer. The lane must be free by then, and the published
    /// load must show it.
    pub fn conclude(&mut self) {
        if let Some(last) = self.last.take() {
            let _ = self.events.send(last);
        }
    }

    /// Whether the last step ended in an error.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// The constraint's session, so that the caller can drop a faulty grammar from the cache.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Whether the closing must be known with this many tokens left: after the next choice, the
    /// closing may be the only continuation that fits.
    fn is_near(&self, left: usize) -> bool {
        self.bound.is_some_and(|bound| left <= bound.saturating_add(1))
    }

    /// Chooses the next token from the logits after the last decoded token.
    pub fn next(&mut self, logits: &[f32], vocabulary: &Vocabulary) -> Step {
        self.prompt_done.get_or_insert_with(Instant::now);
        self.likelihoods = self.report.filter(|_| !self.sampled).map(|top| Likelihoods::of(logits, top));
        let added = match self.session.take() {
            Some(mut session) => {
                let added = self.choose_constrained(&mut session, logits, vocabulary);
                self.session = Some(session);
                added
            }
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

    /// Records what the sampler draws from, if the request wants that reported.
    fn look_at_sampler(&mut self, logits: &[f32], allowed: impl Fn(u32) -> bool) {
        if let Some(top) = self.report.filter(|_| self.sampled) {
            let kept = self.sampler.shares(logits, allowed);
            self.likelihoods = Some(Likelihoods::of_shares(logits.len(), &kept, top));
        }
    }

    /// Wraps tokens with their reports. The first `sampled` tokens were chosen by the model.
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

    /// Takes back the last `drop` tokens, none of which has been sent.
    fn take_back(&mut self, drop: usize) {
        let keep = self.held.len().saturating_sub(drop);
        for piece in self.held.drain(keep..) {
            self.left += 1;
            self.usage.completion_tokens -= 1;
            self.usage.forced_tokens -= u32::from(piece.forced);
        }
    }

    /// Marks the next `count` tokens as certain, sends their reports, and returns their text.
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

    /// Adds tokens to the answer, sends the text that is certain, and prepares the last event if
    /// the answer ends.
    fn add(&mut self, added: Result<Added, EngineError>, vocabulary: &Vocabulary) -> Step {
        let Added { drop, tokens, sampled, mut end } = match added {
            Ok(added) => added,
            Err(error) => {
                self.failed = true;
                self.last = Some(AnswerEvent::Failed(error));
                return Step::Ended;
            }
        };
        if end == Some(FinishReason::Stop) && self.session().is_some_and(Session::is_cut) {
            // A value was cut short, so the answer does not say all that it would have.
            end = Some(FinishReason::Length);
        }
        if drop > self.held.len() {
            // This is a bug. Fail, rather than send an answer that differs from what the model
            // wrote.
            self.failed = true;
            let message = "tokens that were already sent can't be taken back".to_owned();
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
        let uncertain = self.session().filter(|_| end.is_none()).and_then(Session::uncertain);
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
        for closed in self.backtracking.closed() {
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

/// Probabilities of all tokens at one position.
struct Likelihoods {
    logits: Vec<f32>,
    /// Logarithm of the sum of the exponentials of all logits.
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

    /// Builds likelihoods from sampler shares, largest first. All other tokens have probability 0.
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
        // JSON can't represent infinity.
        let logprob = (logit - self.total).clamp(-1e4, 0.0);
        TokenLikelihood { id, bytes: vocabulary.name(id).to_vec(), logprob }
    }
}

fn no_token() -> EngineError {
    EngineError::NotFinite
}
