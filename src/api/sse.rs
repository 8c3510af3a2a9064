//! Answers a request from its running generations, whole or streamed, in the requested dialect.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use serde_json::Value;
use tokio_stream::Stream;

use super::answer_stream::Output;
use super::answer_streams::{AnswerStreams, Whole};
use super::error::ApiError;
use crate::engine::Usage;

/// Comments keep the connection open through proxies while nothing else is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The reply format of one kind of request.
pub(super) trait ReplyFormat: Send + Unpin + 'static {
    /// Whether a stream ends with `[DONE]`.
    const DONE: bool;
    /// Whether each event is named after the `type` in its data.
    const NAMED: bool = false;

    /// The whole answer.
    fn reply(self, answers: Vec<Whole>) -> Value;

    /// The first chunks.
    fn begin(&mut self) -> Vec<Value>;

    /// Chunks for an output; `progress` is that of its generation.
    fn output(&mut self, index: usize, output: Output, progress: Option<Usage>) -> Vec<Value>;

    /// The last chunks.
    fn end(&mut self) -> Vec<Value>;

    /// The chunk for an error after the stream has begun.
    fn error(error: &ApiError) -> Value {
        error.openai_body()
    }
}

/// Answers with the output of the generations.
pub(super) async fn respond<D: ReplyFormat>(
    mut dialect: D,
    mut generations: AnswerStreams,
    stream: bool,
) -> Result<Response, ApiError> {
    if !stream {
        return Ok(Json(dialect.reply(generations.collect().await?)).into_response());
    }
    let (index, first) = generations.first().await?;
    let ready = dialect.begin().iter().map(event::<D>).collect();
    let mut chunks = Chunks { dialect, generations: Some(generations), ready };
    chunks.tell(index, first);
    Ok(Sse::new(chunks).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// The generations as server-sent events.
struct Chunks<D> {
    dialect: D,
    /// `None` once all events are in `ready`.
    generations: Option<AnswerStreams>,
    ready: VecDeque<Event>,
}

impl<D: ReplyFormat> Chunks<D> {
    fn tell(&mut self, index: usize, output: Output) {
        let progress = self.generations.as_ref().and_then(|generations| generations.progress(index));
        self.ready.extend(self.dialect.output(index, output, progress).iter().map(event::<D>));
    }

    fn end(&mut self, last: &[Value]) {
        self.ready.extend(last.iter().map(event::<D>));
        if D::DONE {
            self.ready.push_back(Event::default().data("[DONE]"));
        }
        self.generations = None;
    }
}

fn event<D: ReplyFormat>(data: &Value) -> Event {
    let event = Event::default().json_data(data).expect("a JSON value is always JSON");
    match data.get("type").and_then(Value::as_str) {
        Some(name) if D::NAMED => event.event(name),
        _ => event,
    }
}

impl<D: ReplyFormat> Stream for Chunks<D> {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            let Some(generations) = &mut self.generations else { return Poll::Ready(None) };
            match ready!(Pin::new(generations).poll_next(context)) {
                Some(Ok((index, output))) => self.tell(index, output),
                Some(Err(error)) => {
                    tracing::warn!(%error, "a stream ended with an error");
                    self.end(&[D::error(&error)]);
                }
                None => {
                    let last = self.dialect.end();
                    self.end(&last);
                }
            }
        }
    }
}
