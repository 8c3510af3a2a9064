//! A streamed answer: server-sent events with their arrival times.

use std::io::BufRead;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Why a stream is not an answer.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection broke.
    #[error("the stream ended early: {0}")]
    Io(#[from] std::io::Error),
    /// A line that is not an event.
    #[error("the stream has the line {0:?}, expected server-sent events of JSON")]
    Line(String),
    /// The server reported an error.
    #[error("the stream ended with an error: {0}")]
    Refused(String),
    /// The stream stopped without a finish reason.
    #[error("the stream ended without [DONE]")]
    Unfinished,
}

/// An answer with the times at which its pieces arrived, counted from when the request was sent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Time to the first piece with text.
    pub first: Duration,
    /// Times between consecutive pieces.
    pub gaps: Vec<Duration>,
    /// Time to the end of the stream.
    pub latency: Duration,
    /// The text, without reasoning.
    pub text: String,
    /// `stop`, `length` or what the server says.
    pub finish_reason: String,
    /// From the server's `usage`, or else the number of pieces.
    pub completion_tokens: u64,
    /// From the server's `usage`.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the prompt that were in the server's cache.
    pub cached_tokens: Option<u64>,
}

impl Answer {
    /// Reads a stream to its end; `begun` is when the request was sent.
    ///
    /// # Errors
    /// A broken connection, an error in the stream, a line that is not an event.
    pub fn read(stream: impl BufRead, begun: Instant) -> Result<Self, StreamError> {
        let mut answer = Self::default();
        let mut last: Option<Duration> = None;
        let (mut pieces, mut usage) = (0, None);
        for line in stream.lines() {
            let line = line?;
            let now = begun.elapsed();
            // Comments keep a connection open; names and ids of events don't matter here.
            let Some(data) = line.strip_prefix("data:").map(str::trim_start) else {
                if line.is_empty() || [":", "event:", "id:", "retry:"].iter().any(|p| line.starts_with(p)) {
                    continue;
                }
                return Err(StreamError::Line(line));
            };
            if data == "[DONE]" {
                answer.latency = now;
                if last.is_none() {
                    answer.first = now;
                }
                answer.completion_tokens = usage.unwrap_or(pieces);
                return Ok(answer);
            }
            let Ok(chunk) = serde_json::from_str::<Value>(data) else { return Err(StreamError::Line(line)) };
            if let Some(error) = chunk.get("error") {
                let message = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
                return Err(StreamError::Refused(message));
            }
            let choice = &chunk["choices"][0];
            if answer.piece(&choice["delta"]) {
                pieces += 1;
                match last {
                    None => answer.first = now,
                    Some(last) => answer.gaps.push(now.saturating_sub(last)),
                }
                last = Some(now);
            }
            if let Some(reason) = choice["finish_reason"].as_str() {
                reason.clone_into(&mut answer.finish_reason);
            }
            usage = answer.counts(&chunk).or(usage);
        }
        Err(StreamError::Unfinished)
    }

    /// Appends the text of a piece; returns whether there was any.
    fn piece(&mut self, delta: &Value) -> bool {
        let text = |key: &str| delta[key].as_str().unwrap_or_default();
        self.text += text("content");
        !(text("content").is_empty() && text("reasoning_content").is_empty())
    }

    /// Records what a chunk says about the prompt; returns the number of tokens of the answer, if
    /// the chunk has it.
    fn counts(&mut self, chunk: &Value) -> Option<u64> {
        let usage = &chunk["usage"];
        self.prompt_tokens = usage["prompt_tokens"].as_u64().or(self.prompt_tokens);
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        // Older llama-servers report it in `timings` only.
        self.cached_tokens = cached.or(chunk["timings"]["cache_n"].as_u64()).or(self.cached_tokens);
        usage["completion_tokens"].as_u64()
    }

    /// Time per token after the first piece; `None` for an answer of one token.
    pub fn per_token(&self) -> Option<Duration> {
        let later_tokens = u32::try_from(self.completion_tokens.saturating_sub(1)).ok().filter(|&n| n > 0)?;
        Some(self.gaps.iter().sum::<Duration>() / later_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stream: &str) -> Result<Answer, StreamError> {
        Answer::read(stream.as_bytes(), Instant::now())
    }

    #[test]
    fn a_stream_becomes_text_counts_and_gaps() {
        let answer = read(
            ": keep-alive\n\
             data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"{\\\"a\\\":\"}}]}\n\n\
             data:{\"choices\":[{\"delta\":{\"content\":\"1\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"}\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}],\"timings\":{\"cache_n\":3}}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":5}}\n\n\
             data: [DONE]\n\n",
        )
        .unwrap();
        assert_eq!((answer.text.as_str(), answer.finish_reason.as_str()), ("{\"a\":1}", "length"));
        // The chunk that only names the role isn't part of the answer.
        assert_eq!(answer.gaps.len(), 2);
        assert_eq!(
            (answer.completion_tokens, answer.prompt_tokens, answer.cached_tokens),
            (5, Some(9), Some(3))
        );
        assert!(answer.first <= answer.latency);
    }

    #[test]
    fn without_usage_pieces_are_counted() {
        let piece = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n";
        let answer = read(&format!("{piece}{piece}data: [DONE]\n")).unwrap();
        assert_eq!((answer.completion_tokens, answer.prompt_tokens), (2, None));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(matches!(read("{\"choices\":[]}"), Err(StreamError::Line(_))));
        assert!(matches!(read("data: nonsense\n"), Err(StreamError::Line(_))));
        assert!(matches!(read("data: {\"choices\":[]}\n"), Err(StreamError::Unfinished)));
        let error = read("data: {\"error\":{\"message\":\"too long\"}}\n").unwrap_err();
        assert_eq!(error.to_string(), "the stream ended with an error: too long");
    }

    #[test]
    fn time_per_token_spreads_the_gaps_over_tokens_not_pieces() {
        let gaps = vec![Duration::from_millis(30), Duration::from_millis(50)];
        let answer = Answer { gaps, completion_tokens: 5, ..Answer::default() };
        assert_eq!(answer.per_token(), Some(Duration::from_millis(20)));
        assert_eq!(Answer { completion_tokens: 1, ..answer }.per_token(), None);
    }
}
