//! How a fake engine answers a request or a query, on a thread of its own.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::script::{Script, ScriptedToken};
use super::spokes::Use;
use super::words::{constrained, cut_at_stop, reported, tokens, word_id, words};
use super::{FakeEngine, Inner, TICK, lock};
use crate::engine::{
    AnswerEvent, EngineError, EngineState, FinishReason, Generate, LaneState, Query, Reply, Usage,
};

/// The receiver of a request was dropped.
#[derive(Debug)]
pub(super) struct Cancelled;

impl Inner {
    /// Publishes the number of unfinished requests.
    pub(super) fn tell_running(&self) {
        self.health.send_modify(|health| health.running = self.running.load(Ordering::SeqCst));
    }

    /// Errors that can be detected at once.
    pub(super) fn refuse(&self) -> Result<(), EngineError> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(EngineError::Stopped);
        }
        match &self.health.borrow().state {
            EngineState::Failed(reason) => Err(EngineError::Model(reason.clone())),
            EngineState::Stopped => Err(EngineError::Stopped),
            EngineState::Loading | EngineState::Ready(_) => Ok(()),
        }
    }

    /// Waits for the end of loading. `Err(None)` if the caller left, `Err(Some)` if no answer will
    /// come.
    pub(super) fn wait_until_ready(&self, left: &dyn Fn() -> bool) -> Result<(), Option<EngineError>> {
        loop {
            let state = self.health.borrow().state.clone();
            match state {
                EngineState::Ready(_) if self.killed.load(Ordering::SeqCst) => {
                    return Err(Some(EngineError::Stopped));
                }
                EngineState::Ready(_) => return Ok(()),
                EngineState::Failed(reason) => return Err(Some(EngineError::Model(reason))),
                EngineState::Stopped => return Err(Some(EngineError::Stopped)),
                EngineState::Loading if left() => return Err(None),
                EngineState::Loading => thread::sleep(TICK),
            }
        }
    }

    /// Plays a script. The last event is returned instead of sent, so that counters are updated
    /// before it arrives.
    pub(super) fn answer(
        &self,
        script: &Script,
        request: &Generate,
        spokes: &Use,
        events: &mpsc::UnboundedSender<AnswerEvent>,
    ) -> Result<AnswerEvent, Cancelled> {
        match self.wait_until_ready(&|| events.is_closed()) {
            Ok(()) => {}
            Err(Some(error)) => return Ok(AnswerEvent::Failed(error)),
            Err(None) => return Err(Cancelled),
        }
        let prompt_tokens = tokens(&request.prompt).len() as u32;
        let context = Self::context();
        if prompt_tokens == 0 {
            return Ok(AnswerEvent::Failed(EngineError::EmptyPrompt));
        }
        let vocabulary = FakeEngine::info().n_vocab;
        if let Some(id) = tokens(&request.prompt).into_iter().find(|&id| id >= vocabulary) {
            return Ok(AnswerEvent::Failed(EngineError::NoSuchToken { id, vocabulary }));
        }
        if prompt_tokens >= context {
            return Ok(AnswerEvent::Failed(EngineError::PromptTooLong { tokens: prompt_tokens, context }));
        }
        let budget = request.max_tokens.unwrap_or(u32::MAX).min(context - prompt_tokens);
        let (text, delay, failure) = match script {
            Script::Fail(error) => return Ok(AnswerEvent::Failed(error.clone())),
            Script::Never => {
                let _ = events.send(AnswerEvent::Started { prompt_tokens, cached_tokens: 0 });
                return self.pause(Duration::MAX, events).map(|()| AnswerEvent::Failed(EngineError::Stopped));
            }
            Script::Echo => {
                let plain = request.prompt.iter().rev().find(|segment| !segment.markup);
                let last = plain.or(request.prompt.last());
                (last.map_or_else(String::new, |segment| segment.text.clone()), Duration::ZERO, None)
            }
            Script::Text(text) => (text.clone(), Duration::ZERO, None),
            Script::Spokes(delay) => (spokes.told(), *delay, None),
            Script::Slow { text, delay } => (text.clone(), *delay, None),
            Script::Tokens(tokens) => {
                let cached_tokens = lock(&self.usage).cached_tokens;
                let _ = events.send(AnswerEvent::Started { prompt_tokens, cached_tokens });
                tell_tokens(request.report, tokens, events)?;
                return Ok(self.finished(FinishReason::Stop, prompt_tokens, tokens.len() as u32, 0.0));
            }
            Script::FailAfter(text, error) => (text.clone(), Duration::ZERO, Some(error.clone())),
        };
        let text = match constrained(request.constraint.as_ref(), text, budget) {
            Ok(text) => text,
            Err(error) => return Ok(AnswerEvent::Failed(error)),
        };
        let cached_tokens = lock(&self.usage).cached_tokens;
        let _ = events.send(AnswerEvent::Started { prompt_tokens, cached_tokens });
        if request.progress {
            let _ = events.send(AnswerEvent::Read(prompt_tokens));
        }
        let (text, stopped_by) = cut_at_stop(text, &request.stop);
        let start = Instant::now();
        let mut completion_tokens = 0;
        let mut reason = FinishReason::Stop;
        for word in words(&text) {
            if completion_tokens == budget {
                reason = FinishReason::Length;
                break;
            }
            if !delay.is_zero() {
                self.pause(delay, events)?;
            }
            if self.killed.load(Ordering::SeqCst) {
                return Ok(AnswerEvent::Failed(EngineError::Stopped));
            }
            if let Some(top) = request.report {
                let report = reported(word.as_bytes(), 0.5, false, top);
                events.send(AnswerEvent::Tokens(vec![report])).map_err(|_| Cancelled)?;
            }
            events.send(AnswerEvent::Text(word.to_owned())).map_err(|_| Cancelled)?;
            completion_tokens += 1;
        }
        if let Some(error) = failure {
            return Ok(AnswerEvent::Failed(error));
        }
        // The end-of-turn token counts, as in a real engine.
        completion_tokens +=
            u32::from(reason == FinishReason::Stop && stopped_by.is_none() && completion_tokens < budget);
        let predicted_ms = start.elapsed().as_secs_f64() * 1e3;
        let stopped_by = stopped_by.filter(|_| reason == FinishReason::Stop);
        Ok(match self.finished(reason, prompt_tokens, completion_tokens, predicted_ms) {
            AnswerEvent::Finished { reason, usage } => {
                AnswerEvent::Finished { reason, usage: Usage { stopped_by, ..usage } }
            }
            other => other,
        })
    }

    fn finished(
        &self,
        reason: FinishReason,
        prompt_tokens: u32,
        completion_tokens: u32,
        ms: f64,
    ) -> AnswerEvent {
        let usage = *lock(&self.usage);
        let predicted_ms = ms + usage.predicted_ms;
        AnswerEvent::Finished {
            reason,
            usage: Usage { prompt_tokens, completion_tokens, predicted_ms, ..usage },
        }
    }

    pub(super) fn reply(&self, query: &Query) -> Reply {
        match query {
            Query::Tokenize { prompt, .. } => {
                let mut seen = lock(&self.words);
                for word in prompt.iter().flat_map(|segment| words(&segment.text)) {
                    seen.insert(word_id(word), word.to_owned());
                }
                Reply::Tokens(tokens(prompt))
            }
            Query::TokenizeAll(prompts) => Reply::AllTokens(prompts.iter().map(tokens).collect()),
            Query::Pieces(ids) => {
                let seen = lock(&self.words);
                let piece = |id| seen.get(id).cloned().unwrap_or_else(|| format!("<{id}>")).into_bytes();
                Reply::Pieces(ids.iter().map(piece).collect())
            }
            Query::Lanes => {
                let requests = lock(&self.requests);
                Reply::Lanes(vec![LaneState {
                    request: requests.last().map(|request| request.id.clone()),
                    task: requests.len() as u64,
                    ..LaneState::default()
                }])
            }
        }
    }

    /// Maximum tokens of prompt and answer together.
    pub(super) fn context() -> u32 {
        FakeEngine::info().n_ctx
    }

    /// Waits, unless the receiver is dropped or the engine is stopped.
    fn pause(&self, length: Duration, events: &mpsc::UnboundedSender<AnswerEvent>) -> Result<(), Cancelled> {
        let start = Instant::now();
        while start.elapsed() < length && !self.killed.load(Ordering::SeqCst) {
            if events.is_closed() {
                return Err(Cancelled);
            }
            thread::sleep(TICK.min(length));
        }
        Ok(())
    }
}

/// Plays tokens. Text is sent when its characters are complete.
fn tell_tokens(
    report: Option<u32>,
    tokens: &[ScriptedToken],
    events: &mpsc::UnboundedSender<AnswerEvent>,
) -> Result<(), Cancelled> {
    let (mut held, mut reports) = (Vec::new(), Vec::new());
    for token in tokens {
        held.extend_from_slice(&token.bytes);
        reports.extend(report.map(|top| reported(&token.bytes, token.probability, token.forced, top)));
        let Ok(text) = String::from_utf8(held.clone()) else { continue };
        held.clear();
        if report.is_some() {
            events.send(AnswerEvent::Tokens(std::mem::take(&mut reports))).map_err(|_| Cancelled)?;
        }
        events.send(AnswerEvent::Text(text)).map_err(|_| Cancelled)?;
    }
    if !reports.is_empty() {
        events.send(AnswerEvent::Tokens(reports)).map_err(|_| Cancelled)?;
    }
    Ok(())
}
