//! One running generation as the API sees it: splits off thinking, enforces the deadline, and
//! always ends with an end or an error.
//!
//! Dropping it drops the engine's receiver, which cancels the generation. A client that leaves
//! needs no other handling.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;

use super::app::{App, Deadline};
use super::error::{ApiError, Fields};
use super::observe::AnswerMetrics;
use super::reasoning::{Kind, Piece, Splitter};
use super::spokes::Chosen;
use crate::engine::{
    AnswerEvent, Closed, EngineError, FinishReason, Generate, TokenReport, Usage, whole_characters,
};

/// Output of a generation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Output {
    /// The prompt is accepted. Later failures can't be predicted.
    Started,
    /// Number of prompt tokens processed so far, if the request asked for progress.
    Read(u32),
    /// Text of the answer.
    Answer(Part),
    /// Text of the thinking before it.
    Reasoning(String),
    /// The answer was kept from repeating itself here.
    Closed(Closed),
    /// The end, always last unless there is an error. Carries the last reported token without text,
    /// if there is one: the token that ended the answer, unless a stop text did.
    End(FinishReason, Usage, Option<TokenReport>),
}

/// Text of an answer and the tokens that begin in it, if the request asked for a report.
///
/// Tokens and text are matched by their bytes. If a stop text or the end of the thinking cuts a
/// token in two, the token belongs to the answer. Tokens of a stop text are dropped if none of
/// their bytes is sent. Tokens of a character that the answer leaves incomplete have no text, but
/// belong to the answer, too.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Part {
    pub(super) text: String,
    pub(super) tokens: Vec<TokenReport>,
}

/// A stream of [`Output`]s that ends with [`Output::End`] or an error.
#[derive(Debug)]
pub(super) struct AnswerStream {
    id: String,
    events: mpsc::UnboundedReceiver<AnswerEvent>,
    /// `None` once the generation has ended.
    splitter: Option<Splitter>,
    metrics: AnswerMetrics,
    log_texts: bool,
    told: VecDeque<Output>,
    reports: Reports,
    progress: Progress,
    /// Whether tokens are reported. If not, each text counts as one token.
    counted: bool,
    fields: Fields,
    deadline: Deadline,
    alarm: Pin<Box<Sleep>>,
    /// Declared after `events`, so that the engine sees that the client left before the spokes'
    /// leases end.
    held: Option<Arc<Chosen>>,
}

impl AnswerStream {
    /// Queues the request. `splitter` separates thinking from the answer. `first` means that no
    /// earlier answer has the same prompt.
    pub(super) fn start(
        app: &App,
        request: Generate,
        splitter: Splitter,
        held: Arc<Chosen>,
        fields: Fields,
        deadline: Deadline,
        first: bool,
    ) -> Result<Self, ApiError> {
        let (id, counted) = (request.id.clone(), request.report.is_some());
        let log_texts = app.log_texts();
        if log_texts {
            let prompt: String = request.prompt.iter().map(|segment| segment.text.as_str()).collect();
            tracing::info!(id, prompt, "asked");
        }
        tracing::debug!(id, "queued");
        let metrics = AnswerMetrics::begin(Arc::clone(app.metrics()), first);
        let events = app.engine().generate(request).map_err(|error| fields.blame(error))?;
        let alarm = Box::pin(tokio::time::sleep_until(deadline.at));
        Ok(Self {
            id,
            events,
            splitter: Some(splitter),
            metrics,
            log_texts,
            told: VecDeque::new(),
            reports: Reports::default(),
            progress: Progress::start(),
            counted,
            fields,
            deadline,
            alarm,
            held: Some(held),
        })
    }

    /// Progress so far: reported tokens, or else texts, with times measured here.
    pub(super) fn progress(&self) -> Usage {
        self.progress.usage()
    }

    fn take(&mut self, event: AnswerEvent) -> Result<(), ApiError> {
        let Some(splitter) = &mut self.splitter else { return Ok(()) };
        match event {
            AnswerEvent::Started { prompt_tokens, cached_tokens } => {
                self.progress.began = Instant::now();
                self.progress.usage.prompt_tokens = prompt_tokens;
                self.progress.usage.cached_tokens = cached_tokens;
                self.metrics.started(prompt_tokens, cached_tokens);
                self.told.push_back(Output::Started);
            }
            AnswerEvent::Read(tokens) => self.told.push_back(Output::Read(tokens)),
            AnswerEvent::Tokens(tokens) => {
                self.progress.usage.completion_tokens += tokens.len() as u32;
                self.reports.waiting.extend(tokens);
            }
            AnswerEvent::Text(text) => {
                self.progress.first.get_or_insert_with(Instant::now);
                self.metrics.text();
                if self.log_texts {
                    tracing::info!(id = self.id, text, "told");
                }
                if self.counted {
                    self.reports.written.extend_from_slice(text.as_bytes());
                } else {
                    self.progress.usage.completion_tokens += 1;
                }
                for piece in splitter.push(&text) {
                    self.told.push_back(self.reports.output(piece));
                }
            }
            AnswerEvent::Closed(closed) => {
                tracing::info!(id = self.id, why = closed.why.name(), "kept from repeating itself");
                self.metrics.closed(closed.why);
                self.told.push_back(Output::Closed(closed));
            }
            AnswerEvent::Finished { reason, usage } => {
                self.held = None;
                let thinks = splitter.is_thinking();
                let held = self.splitter.take().and_then(Splitter::finish);
                self.told.extend(held.map(|piece| self.reports.output(piece)));
                // The token that ends an answer has no bytes, or a name. Any other bytes are part
                // of a character.
                let is_name = |report: &TokenReport| std::str::from_utf8(&report.token.bytes).is_ok();
                let ended = reason == FinishReason::Stop && self.reports.waiting.back().is_some_and(is_name);
                let last = if ended { self.reports.waiting.pop_back() } else { None };
                let tokens = if thinks { Vec::new() } else { self.reports.broken_off() };
                if !tokens.is_empty() {
                    self.told.push_back(Output::Answer(Part { text: String::new(), tokens }));
                }
                self.told.push_back(Output::End(reason, usage, last));
                self.metrics.finished(&usage);
                tracing::debug!(
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
            AnswerEvent::Failed(error) => return Err(self.fields.blame(error)),
        }
        Ok(())
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        if self.splitter.is_some() {
            tracing::debug!(id = self.id, "the client left: generation is cancelled");
            self.metrics.gone(&self.progress.usage);
        }
    }
}

/// Tokens not yet assigned to a text.
#[derive(Debug, Default)]
struct Reports {
    waiting: VecDeque<TokenReport>,
    /// All text written so far, tags included, and how far the assigned tokens reach in it.
    written: Vec<u8>,
    reach: Reach,
}

/// How far tokens reach in a text: to the end of a character, or some bytes into the next one.
/// These bytes are counted as they are; if they turn out to be no character, U+FFFD takes their
/// place.
#[derive(Debug, Clone, Default)]
struct Reach {
    whole: usize,
    partial: Vec<u8>,
}

impl Reach {
    fn at(&self) -> usize {
        self.whole + self.partial.len()
    }

    /// The reach after one more token. A control token, which is reported by its name, adds
    /// nothing.
    fn with(&self, token: &[u8], written: &[u8]) -> Self {
        let mut partial = [&self.partial, token].concat();
        let text = whole_characters(&mut partial);
        let there = written.get(self.whole..).unwrap_or_default();
        if there.iter().zip(text.as_bytes()).all(|(there, byte)| there == byte) {
            Self { whole: self.whole + text.len(), partial }
        } else {
            self.clone()
        }
    }
}

impl Reports {
    /// Tokens of a character that the answer leaves incomplete.
    fn broken_off(&mut self) -> Vec<TokenReport> {
        let waiting = self.waiting.iter().flat_map(|report| &report.token.bytes);
        let mut rest: Vec<u8> = self.reach.partial.iter().chain(waiting).copied().collect();
        if whole_characters(&mut rest).is_empty() { self.waiting.drain(..).collect() } else { Vec::new() }
    }

    fn output(&mut self, piece: Piece) -> Output {
        let mut tokens = Vec::new();
        let end = piece.at + piece.text.len();
        while let Some(report) = self.waiting.pop_front() {
            let reach = self.reach.with(&report.token.bytes, &self.written);
            let (at, next) = (self.reach.at(), reach.at());
            // A token that reaches beyond the thinking belongs to the answer.
            if at >= end || (piece.kind == Kind::Reasoning && next > end) {
                self.waiting.push_front(report);
                break;
            }
            self.reach = reach;
            // Anything that ends before the piece begins was a tag, or white space after one.
            if at >= piece.at || next > piece.at {
                tokens.push(report);
            }
        }
        match piece.kind {
            Kind::Answer => Output::Answer(Part { text: piece.text, tokens }),
            Kind::Reasoning => Output::Reasoning(piece.text),
        }
    }
}

/// Progress of a generation.
#[derive(Debug)]
struct Progress {
    began: Instant,
    /// When its first text arrived.
    first: Option<Instant>,
    usage: Usage,
}

impl Progress {
    fn start() -> Self {
        Self { began: Instant::now(), first: None, usage: Usage::default() }
    }

    fn usage(&self) -> Usage {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        Usage { prompt_ms: ms(self.began, first), predicted_ms: ms(first, now), ..self.usage }
    }
}

impl Stream for AnswerStream {
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
                self.metrics.gone(&self.progress.usage);
                self.splitter = None;
                self.told.clear();
                self.events.close();
                self.held = None;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::TokenLikelihood;

    /// Texts of the tokens assigned to each piece of the answer.
    fn matched(tokens: &[&str], texts: &[&str]) -> Vec<(String, Vec<String>)> {
        let tokens: Vec<&[u8]> = tokens.iter().map(|token| token.as_bytes()).collect();
        matched_bytes(&tokens, texts)
    }

    fn matched_bytes(tokens: &[&[u8]], texts: &[&str]) -> Vec<(String, Vec<String>)> {
        let mut reports = Reports::default();
        let likelihood = |bytes: &&[u8]| TokenLikelihood { id: 0, bytes: bytes.to_vec(), logprob: 0.0 };
        let report = |bytes| TokenReport { token: likelihood(bytes), forced: false, top: vec![] };
        reports.waiting.extend(tokens.iter().map(report));
        reports.written = texts.concat().into_bytes();
        let mut splitter = Splitter::new(false);
        let mut pieces: Vec<Piece> = texts.iter().flat_map(|text| splitter.push(text)).collect();
        pieces.extend(splitter.finish());
        let text = |token: TokenReport| String::from_utf8_lossy(&token.token.bytes).into_owned();
        pieces
            .into_iter()
            .filter_map(|piece| match reports.output(piece) {
                Output::Answer(part) => Some((part.text, part.tokens.into_iter().map(text).collect())),
                _ => None,
            })
            .collect()
    }

    fn expected(pairs: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        pairs.iter().map(|&(text, tokens)| (text.to_owned(), owned(tokens))).collect()
    }

    #[test]
    fn bytes_that_are_no_character_cost_no_token_behind_them() {
        let euro = "€".as_bytes();
        // A byte that starts no character, an incomplete character, and a character in two
        // parts.
        let tokens = [b"a", &b"\xFF"[..], b"b", &euro[..2], b"c", &euro[..1], &euro[1..], b"d"];
        let found = matched_bytes(&tokens, &["a", "\u{FFFD}", "b", "\u{FFFD}c", "€", "d"]);
        let broken = "\u{FFFD}";
        assert_eq!(
            found,
            expected(&[
                ("a", &["a"]),
                (broken, &[broken]),
                ("b", &["b"]),
                ("\u{FFFD}c", &[broken, "c"]),
                ("€", &[broken, "\u{FFFD}\u{FFFD}"]),
                ("d", &["d"]),
            ])
        );
    }

    #[test]
    fn tokens_follow_the_text_that_they_begin_in() {
        assert_eq!(
            matched(&["ab", "c", "d"], &["abc", "d"]),
            expected(&[("abc", &["ab", "c"]), ("d", &["d"])])
        );
        // A stop text cut `END` off the second token, and the third was never sent.
        assert_eq!(matched(&["ab", "cEN", "D"], &["abc"]), expected(&[("abc", &["ab", "cEN"])]));
        // A control token has a name that no text contains.
        let named = matched(&["a", "<|user|>", "b"], &["a", "b"]);
        assert_eq!(named, expected(&[("a", &["a"]), ("b", &["<|user|>", "b"])]));
        // Tags, thinking and the white space after them have no tokens in the answer.
        let thought = matched(
            &["<think>", "mm", "</think>", "\n\n", "yes", "."],
            &["<think>mm</thi", "nk>\n\nyes", "."],
        );
        assert_eq!(thought, expected(&[("yes", &["yes"]), (".", &["."])]));
        assert_eq!(
            matched(&["<think>m</think>\ny", "es"], &["<think>m</think>\nyes"]),
            expected(&[("yes", &["<think>m</think>\ny", "es"])])
        );
    }
}
