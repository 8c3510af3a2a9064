//! One running generation as the API sees it: thinking split off, a deadline, and an end that is never missing.
//!
//! Dropping it drops the engine's receiver, which cancels the generation; that is all there is to a client that left.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_stream::Stream;

use super::error::ApiError;
use super::reasoning::{Piece, Splitter};
use super::state::{App, Deadline};
use crate::engine::{EngineError, Event, FinishReason, Generate, Usage};

/// What a generation brings.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Output {
    /// Text of the answer.
    Answer(String),
    /// Text of the thinking before it.
    Reasoning(String),
    /// The end: always the last, if no error is.
    End(FinishReason, Usage),
}

/// A stream of [`Output`]s that ends with [`Output::End`] or an error.
#[derive(Debug)]
pub(super) struct Generation {
    id: String,
    events: mpsc::UnboundedReceiver<Event>,
    /// `None` once the generation is over.
    splitter: Option<Splitter>,
    told: VecDeque<Output>,
    deadline: Deadline,
    alarm: Pin<Box<Sleep>>,
}

impl Generation {
    /// Queues the request.
    pub(super) fn start(app: &App, request: Generate, deadline: Deadline) -> Result<Self, ApiError> {
        // A template may have opened the block in the assistant's name.
        let thinking = request
            .prompt
            .last()
            .is_some_and(|last| last.markup && last.text.trim_end().ends_with("<think>"));
        let id = request.id.clone();
        let events = app.engine().generate(request)?;
        let alarm = Box::pin(tokio::time::sleep_until(deadline.at));
        Ok(Self {
            id,
            events,
            splitter: Some(Splitter::new(thinking)),
            told: VecDeque::new(),
            deadline,
            alarm,
        })
    }

    fn take(&mut self, event: Event) -> Result<(), ApiError> {
        let Some(splitter) = &mut self.splitter else { return Ok(()) };
        match event {
            Event::Started { .. } | Event::Tokens(_) => {}
            Event::Text(text) => self.told.extend(splitter.push(&text).into_iter().map(Output::from)),
            Event::Finished { reason, usage } => {
                let held = self.splitter.take().and_then(Splitter::finish);
                self.told.extend(held.map(Output::from));
                self.told.push_back(Output::End(reason, usage));
                tracing::info!(
                    id = self.id,
                    prompt = usage.prompt_tokens,
                    cached = usage.cached_tokens,
                    answer = usage.completion_tokens,
                    forced = usage.forced_tokens,
                    drafted = usage.drafted_tokens,
                    accepted = usage.accepted_tokens,
                    queued_ms = usage.queued_ms.round(),
                    prompt_ms = usage.prompt_ms.round(),
                    answer_ms = usage.predicted_ms.round(),
                    ?reason,
                    "answered"
                );
            }
            Event::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.splitter.is_some() {
            tracing::info!(id = self.id, "the client left: generation is cancelled");
        }
    }
}

impl From<Piece> for Output {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Answer(text) => Self::Answer(text),
            Piece::Reasoning(text) => Self::Reasoning(text),
        }
    }
}

impl Stream for Generation {
    type Item = Result<Output, ApiError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(output) = self.told.pop_front() {
                return Poll::Ready(Some(Ok(output)));
            }
            if self.splitter.is_none() {
                return Poll::Ready(None);
            }
            let taken = match self.events.poll_recv(context) {
                Poll::Ready(Some(event)) => self.take(event),
                Poll::Ready(None) => {
                    Err(EngineError::Internal("it ended without an answer".to_owned()).into())
                }
                Poll::Pending => {
                    ready!(self.alarm.as_mut().poll(context));
                    Err(ApiError::Deadline(self.deadline.limit))
                }
            };
            if let Err(error) = taken {
                self.splitter = None;
                self.told.clear();
                self.events.close();
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}
