//! Parallel generations of one request: `n` answers, or answers to several prompts.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_stream::{Stream, StreamExt};

use super::answer_stream::{AnswerStream, Output};
use super::app::{App, Deadline};
use super::error::{ApiError, Fields};
use super::reasoning::Splitter;
use super::spokes::Chosen;
use crate::engine::{Closed, EngineError, FinishReason, Generate, TokenReport, Usage};

/// A stream of all outputs, each with the index of its generation. An error of one generation ends
/// all.
#[derive(Debug)]
pub(super) struct AnswerStreams {
    /// `None` for a generation that has ended.
    all: Vec<Option<AnswerStream>>,
    /// The generation to poll first next time, so that none starves the others.
    next: usize,
}

/// A whole answer.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) tokens: Vec<TokenReport>,
    /// The reported token without text that ended the answer.
    pub(super) last: Option<TokenReport>,
    /// Where the answer was kept from repeating itself.
    pub(super) closed: Vec<Closed>,
    /// Why it ended, and its cost.
    pub(super) end: Option<(FinishReason, Usage)>,
}

impl AnswerStreams {
    /// Queues all requests or none; `per_prompt` is the number of answers per prompt, and
    /// `splitter` separates thinking from each. Each holds the spokes until it ends.
    pub(super) fn start(
        app: &App,
        requests: Vec<Generate>,
        splitter: &Splitter,
        per_prompt: u32,
        spokes: &Arc<Chosen>,
        fields: Fields,
        deadline: Deadline,
    ) -> Result<Self, ApiError> {
        let all = (0..).zip(requests).map(|(index, request): (u32, _)| {
            let held = Arc::clone(spokes);
            let first = index % per_prompt.max(1) == 0;
            AnswerStream::start(app, request, splitter.clone(), held, fields, deadline, first).map(Some)
        });
        Ok(Self { all: all.collect::<Result<_, _>>()?, next: 0 })
    }

    /// The first output, usually that a prompt is accepted. An error before it becomes a plain
    /// status, even for a stream.
    pub(super) async fn first(&mut self) -> Result<(usize, Output), ApiError> {
        self.next().await.unwrap_or_else(|| Err(EngineError::Stopped.into()))
    }

    /// Progress of one generation.
    pub(super) fn progress(&self, index: usize) -> Option<Usage> {
        self.all.get(index)?.as_ref().map(AnswerStream::progress)
    }

    /// Waits for all generations to end.
    pub(super) async fn collect(mut self) -> Result<Vec<Whole>, ApiError> {
        let mut wholes: Vec<Whole> = self.all.iter().map(|_| Whole::default()).collect();
        while let Some(output) = self.next().await {
            let (index, output) = output?;
            let whole = &mut wholes[index];
            match output {
                Output::Answer(part) => {
                    whole.text.push_str(&part.text);
                    whole.tokens.extend(part.tokens);
                }
                Output::Reasoning(text) => whole.reasoning.push_str(&text),
                Output::Started | Output::Read(_) => {}
                Output::Closed(closed) => whole.closed.push(closed),
                Output::End(reason, usage, last) => {
                    whole.end = Some((reason, usage));
                    whole.last = last;
                }
            }
        }
        Ok(wholes)
    }
}

impl Whole {
    /// Why the answer ended, and its cost. [`AnswerStreams::collect`] returns no answer without an
    /// end.
    pub(super) fn ended(&self) -> (FinishReason, Usage) {
        self.end.unwrap_or((FinishReason::Stop, Usage::default()))
    }
}

/// Total cost of several answers, `per_prompt` of them per prompt. Each prompt counts once; times
/// overlap.
pub(super) fn total(usages: &[Usage], per_prompt: usize) -> Usage {
    let mut total = Usage::default();
    for (index, usage) in usages.iter().enumerate() {
        if index % per_prompt.max(1) == 0 {
            total.prompt_tokens += usage.prompt_tokens;
            total.cached_tokens += usage.cached_tokens;
        }
        total.completion_tokens += usage.completion_tokens;
        total.forced_tokens += usage.forced_tokens;
        total.drafted_tokens += usage.drafted_tokens;
        total.accepted_tokens += usage.accepted_tokens;
        total.prompt_ms = total.prompt_ms.max(usage.prompt_ms);
        total.predicted_ms = total.predicted_ms.max(usage.predicted_ms);
        total.queued_ms = total.queued_ms.max(usage.queued_ms);
    }
    total
}

impl Stream for AnswerStreams {
    type Item = Result<(usize, Output), ApiError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let count = self.all.len();
        let mut waiting = false;
        for step in 0..count {
            let index = (self.next + step) % count;
            let Some(generation) = &mut self.all[index] else { continue };
            match Pin::new(generation).poll_next(context) {
                Poll::Pending => waiting = true,
                Poll::Ready(Some(Ok(output))) => {
                    // The last one is kept until its end has been delivered, so that its progress
                    // can still be read.
                    self.next = index + 1;
                    return Poll::Ready(Some(Ok((index, output))));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.all.clear();
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => self.all[index] = None,
            }
        }
        if waiting { Poll::Pending } else { Poll::Ready(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_counts_once_and_times_overlap() {
        let usage = |prompt_tokens, completion_tokens, predicted_ms| Usage {
            prompt_tokens,
            completion_tokens,
            predicted_ms,
            ..Usage::default()
        };
        let two_prompts = [usage(5, 1, 10.0), usage(5, 2, 30.0), usage(7, 3, 20.0), usage(7, 4, 5.0)];
        assert_eq!(total(&two_prompts, 2), usage(12, 10, 30.0));
    }
}
