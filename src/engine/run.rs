//! One request while it is answered: budget, constraint, text, events. Knows nothing of llama.cpp: logits in, tokens out.

use std::time::Instant;

use tokio::sync::mpsc;

use super::constraint::Session;
use super::sampling::Sampler;
use super::text::AnswerText;
use super::vocabulary::{Token, Vocabulary};
use super::{EngineError, Event, FinishReason, Generate, Usage};

/// A request in a lane.
pub struct Run {
    id: String,
    events: mpsc::UnboundedSender<Event>,
    sampler: Sampler,
    session: Option<Session>,
    text: AnswerText,
    /// Tokens that may still be produced.
    left: usize,
    usage: Usage,
    begun: Instant,
    prompt_done: Option<Instant>,
    failed: bool,
}

/// What follows from a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// These tokens are part of the answer and must be decoded before the next step.
    Decode(Vec<u32>),
    /// The answer is whole; its last event has been sent.
    Ended,
}

/// What a step adds to the answer.
enum Added {
    /// Tokens, the first `sampled` of them chosen by the model; the answer goes on.
    Tokens { tokens: Vec<u32>, sampled: usize },
    /// The last tokens.
    Last { tokens: Vec<u32>, sampled: usize, reason: FinishReason },
}

impl Run {
    /// Begins an answer of at most `budget` tokens (at least 1); [`Usage`] has what is known of the prompt.
    ///
    /// # Errors
    /// [`EngineError::BudgetTooSmall`]; a constraint that gives up. No event has been sent then.
    pub fn new(
        request: &Generate,
        events: mpsc::UnboundedSender<Event>,
        mut session: Option<Session>,
        budget: usize,
        usage: Usage,
    ) -> Result<Self, EngineError> {
        if let Some(session) = &mut session {
            let needed = session.closing()?.len();
            if needed > budget {
                return Err(EngineError::BudgetTooSmall { needed: needed as u32, given: budget as u32 });
            }
        }
        // A stop text inside a constrained answer would cut it in two: the constraint alone says where it ends.
        let stops = if session.is_some() { &[][..] } else { &request.stop };
        let text = AnswerText::new(stops);
        let sampler = Sampler::new(request.sampling);
        Ok(Self {
            id: request.id.clone(),
            events,
            sampler,
            session,
            text,
            left: budget,
            usage,
            begun: Instant::now(),
            prompt_done: None,
            failed: false,
        })
    }

    /// Says that the request is accepted, and gives the tokens that the constraint dictates before any choice; they are
    /// decoded together with the prompt.
    pub fn start(&mut self, vocabulary: &Vocabulary) -> Step {
        let (prompt_tokens, cached_tokens) = (self.usage.prompt_tokens, self.usage.cached_tokens);
        let _ = self.events.send(Event::Started { prompt_tokens, cached_tokens });
        if self.session.is_none() {
            return Step::Decode(Vec::new());
        }
        let added = self.constrained(None);
        self.add(added, vocabulary)
    }

    /// The request's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it has cost so far.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Whether nobody waits for the answer any more.
    pub fn cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Ends the answer with an error.
    pub fn fail(self, error: EngineError) {
        let _ = self.events.send(Event::Failed(error));
    }

    /// Whether the last step ended in an error.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// The constraint, to be dropped from the cache if it is the cause of an error.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Goes on with the logits behind the last decoded token.
    pub fn next(&mut self, logits: &[f32], vocabulary: &Vocabulary) -> Step {
        self.prompt_done.get_or_insert_with(Instant::now);
        let added = if self.session.is_some() {
            self.choose_constrained(logits, vocabulary)
        } else {
            self.choose_free(logits, vocabulary)
        };
        self.add(added, vocabulary)
    }

    fn choose_free(&mut self, logits: &[f32], vocabulary: &Vocabulary) -> Result<Added, EngineError> {
        let token = self.sampler.choose(logits, |token| vocabulary.speakable(token)).ok_or_else(no_token)?;
        let tokens = vec![token];
        Ok(if *vocabulary.token(token) == Token::End {
            Added::Last { tokens, sampled: 1, reason: FinishReason::Stop }
        } else if self.left == 1 {
            Added::Last { tokens, sampled: 1, reason: FinishReason::Length }
        } else {
            Added::Tokens { tokens, sampled: 1 }
        })
    }

    fn choose_constrained(&mut self, logits: &[f32], vocabulary: &Vocabulary) -> Result<Added, EngineError> {
        let session = self.session.as_mut().expect("only called with one");
        let mask = session.mask()?;
        let allowed = |token| mask.is_allowed(token) && vocabulary.speakable(token);
        let token = self.sampler.choose(logits, allowed).ok_or_else(no_token)?;
        if *vocabulary.token(token) == Token::End {
            return Ok(Added::Last { tokens: vec![token], sampled: 1, reason: FinishReason::Stop });
        }
        self.constrained(Some(token))
    }

    /// Takes the model's choice, if there was one, and what the constraint dictates behind it; but closes the answer
    /// instead if it could not be closed any more behind them.
    ///
    /// Invariant: the answer can be closed with the tokens that are left, before and after.
    fn constrained(&mut self, chosen: Option<u32>) -> Result<Added, EngineError> {
        let session = self.session.as_mut().expect("only called with one");
        // With more than `bound` tokens left behind the choice, any state can be closed.
        let near = self.left <= session.bound().saturating_add(1);
        let escape = if near { Some(session.closing()?.to_vec()) } else { None };
        let mut tokens = Vec::new();
        if let Some(token) = chosen {
            session.accept(token)?;
            tokens.push(token);
        }
        tokens.extend(session.forced()?);
        let sampled = usize::from(chosen.is_some());
        let ended = session.ended()?;
        let fits = match self.left.checked_sub(tokens.len()) {
            None => false,
            Some(_) if ended => true,
            Some(left) => left > 0 && (escape.is_none() || session.closing()?.len() <= left),
        };
        Ok(match escape {
            Some(escape) if !fits => Added::Last { tokens: escape, sampled: 0, reason: FinishReason::Length },
            _ if ended => Added::Last { tokens, sampled, reason: FinishReason::Stop },
            _ => Added::Tokens { tokens, sampled },
        })
    }

    /// Sends the text of what was added, and the last event if it was the last.
    fn add(&mut self, added: Result<Added, EngineError>, vocabulary: &Vocabulary) -> Step {
        let (tokens, sampled, mut end) = match added {
            Ok(Added::Tokens { tokens, sampled }) => (tokens, sampled, None),
            Ok(Added::Last { tokens, sampled, reason }) => (tokens, sampled, Some(reason)),
            Err(error) => {
                self.failed = true;
                let _ = self.events.send(Event::Failed(error));
                return Step::Ended;
            }
        };
        self.left -= tokens.len().min(self.left);
        self.usage.completion_tokens += tokens.len() as u32;
        self.usage.forced_tokens += (tokens.len() - sampled) as u32;
        let mut text: String = tokens.iter().map(|&token| self.text.push(vocabulary.bytes(token))).collect();
        if self.text.stopped() {
            end = Some(FinishReason::Stop);
        }
        if end.is_some() {
            text += &self.text.finish();
        }
        if !text.is_empty() {
            let _ = self.events.send(Event::Text(text));
        }
        let Some(reason) = end else { return Step::Decode(tokens) };
        let now = Instant::now();
        let prompt_done = self.prompt_done.unwrap_or(now);
        let milliseconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        self.usage.prompt_ms = milliseconds(self.begun, prompt_done);
        self.usage.predicted_ms = milliseconds(prompt_done, now);
        let _ = self.events.send(Event::Finished { reason, usage: self.usage });
        Step::Ended
    }
}

fn no_token() -> EngineError {
    EngineError::Internal("the model's logits admit no token (not a number?)".to_owned())
}
