//! A streamed answer: role, deltas, finish reason, perhaps usage, `[DONE]`; an error after the first token goes inside.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio_stream::Stream;

use super::chat_reply::{Chunk, ChunkChoice, Delta, Envelope};
use crate::api::error::ApiError;
use crate::api::generation::{Generation, Output};
use crate::engine::FinishReason;

/// Comments keep the connection open through proxies while nothing else is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers with a stream that begins with `first`, the generation's first output.
pub(super) fn respond(
    envelope: Envelope,
    first: Output,
    generation: Generation,
    include_usage: bool,
) -> Response {
    let mut chunks = Chunks { envelope, generation: Some(generation), ready: VecDeque::new(), include_usage };
    let role = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
    chunks.push(choice(role, None));
    chunks.tell(Ok(first));
    Sse::new(chunks).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// The generation as server-sent events.
struct Chunks {
    envelope: Envelope,
    /// `None` once everything is in `ready`.
    generation: Option<Generation>,
    ready: VecDeque<Event>,
    include_usage: bool,
}

impl Chunks {
    fn push(&mut self, choice: ChunkChoice) {
        let chunk = Chunk { envelope: &self.envelope, choices: vec![choice], usage: None, timings: None };
        self.ready.push_back(event(&chunk));
    }

    fn tell(&mut self, output: Result<Output, ApiError>) {
        match output {
            Ok(Output::Answer(text)) => {
                self.push(choice(Delta { content: Some(text), ..Delta::default() }, None));
            }
            Ok(Output::Reasoning(text)) => {
                self.push(choice(Delta { reasoning_content: Some(text), ..Delta::default() }, None));
            }
            Ok(Output::End(reason, usage)) => {
                let choices = vec![choice(Delta::default(), Some(reason))];
                let envelope = &self.envelope;
                let last = Chunk { envelope, choices, usage: None, timings: Some((&usage).into()) };
                self.ready.push_back(event(&last));
                if self.include_usage {
                    let report =
                        Chunk { envelope, choices: vec![], usage: Some((&usage).into()), timings: None };
                    self.ready.push_back(event(&report));
                }
                self.end();
            }
            Err(error) => {
                tracing::warn!(id = self.envelope.id, %error, "a stream broke off");
                self.ready.push_back(event(&error.body()));
                self.end();
            }
        }
    }

    fn end(&mut self) {
        self.ready.push_back(Event::default().data("[DONE]"));
        self.generation = None;
    }
}

fn choice(delta: Delta, finish_reason: Option<FinishReason>) -> ChunkChoice {
    ChunkChoice { index: 0, delta, finish_reason }
}

fn event(data: &impl serde::Serialize) -> Event {
    Event::default().json_data(data).expect("numbers, strings and lists are always JSON")
}

impl Stream for Chunks {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            let Some(generation) = &mut self.generation else { return Poll::Ready(None) };
            match ready!(Pin::new(generation).poll_next(context)) {
                Some(output) => self.tell(output),
                // A generation ends with `End` or an error, and both have dropped it here.
                None => self.generation = None,
            }
        }
    }
}
