//! Chat replies: the whole answer, and the chunks of a stream.
//!
//! With tools, text that may be a call is held back until that is certain, and a call is sent as a
//! whole. Tokens of `logprobs` come with their text, or in the next chunk if that text is held
//! back. They include the tokens of calls.

use serde_json::{Map, Value, json};

use super::chat::Reported;
use super::envelope::{Envelope, tell_closed, timings, usage};
use crate::api::answer_stream::{Output, Part};
use crate::api::answer_streams::{Whole, total};
use crate::api::confidence::confidence;
use crate::api::logprobs;
use crate::api::request::AnswerOptions;
use crate::api::sse::ReplyFormat;
use crate::api::timings::{prompt_progress, so_far};
use crate::api::tools::calls::{self, Listener};
use crate::engine::{Closed, FinishReason, TokenReport, Usage};

/// A chat reply under construction.
#[derive(Debug)]
pub(super) struct ChatReply {
    envelope: Envelope,
    include_usage: bool,
    timings_per_token: bool,
    /// Whether the stream reports prompt progress.
    progress: bool,
    /// The engine's request as shown in `__verbose`, if the client asked for it.
    verbose: Option<Value>,
    reported: Reported,
    choices: Vec<Choice>,
    usages: Vec<Usage>,
}

/// State of a streamed choice.
#[derive(Debug, Clone, Default)]
struct Choice {
    listener: Option<Listener>,
    calls: usize,
    /// Tokens not yet sent in a chunk.
    tokens: Vec<TokenReport>,
    /// Where the answer was kept from repeating itself.
    closed: Vec<Closed>,
    /// The whole answer and its tokens, for the confidence.
    answer: String,
    all: Vec<TokenReport>,
}

impl ChatReply {
    pub(super) fn new(
        envelope: Envelope,
        options: &AnswerOptions,
        reported: Reported,
        listener: Option<Listener>,
        verbose: Option<Value>,
    ) -> Self {
        let choice = Choice { listener, ..Choice::default() };
        let n = options.n as usize;
        Self {
            envelope,
            include_usage: options.include_usage,
            timings_per_token: options.timings_per_token,
            progress: options.generate.progress,
            verbose,
            reported,
            choices: vec![choice; n],
            usages: vec![Usage::default(); n],
        }
    }

    fn chunk(
        &self,
        index: usize,
        delta: Value,
        finish: Option<&str>,
        logprobs: Option<Value>,
        done: Option<Usage>,
    ) -> Value {
        let mut choice = json!({"index": index, "delta": delta, "finish_reason": finish});
        if let Some(logprobs) = logprobs {
            choice["logprobs"] = logprobs;
        }
        let mut chunk = self.envelope.around(vec![choice]);
        if let Some(done) = done {
            chunk["timings"] = timings(&done);
        }
        chunk
    }

    /// Prompt progress.
    fn read(&self, index: usize, tokens: u32, progress: Usage) -> Vec<Value> {
        if !self.progress {
            return Vec::new();
        }
        let timed = self.timings_per_token.then(|| so_far(tokens, &progress));
        let mut chunk = self.chunk(index, json!({}), None, None, timed);
        chunk["prompt_progress"] = prompt_progress(tokens, &progress);
        vec![chunk]
    }

    /// Chunks for the output of a choice.
    fn told(&mut self, index: usize, said: Vec<calls::Said>, progress: Option<Usage>) -> Vec<Value> {
        let progress = progress.filter(|_| self.timings_per_token);
        let mut chunks = Vec::new();
        for piece in said {
            let delta = match piece {
                calls::Said::Text(text) => json!({ "content": text }),
                calls::Said::Call { name, arguments } => {
                    let mut call = tool_call(&name, &arguments);
                    call.insert("index".to_owned(), self.choices[index].calls.into());
                    self.choices[index].calls += 1;
                    json!({ "tool_calls": [call] })
                }
            };
            let logprobs = self.take_logprobs(index);
            chunks.push(self.chunk(index, delta, None, logprobs, progress));
        }
        chunks
    }

    fn take_logprobs(&mut self, index: usize) -> Option<Value> {
        let tokens = std::mem::take(&mut self.choices[index].tokens);
        self.reported.logprobs.map(|top| json!({"content": logprobs::chat(&tokens, top)}))
    }

    fn answer(&mut self, index: usize, part: Part, progress: Option<Usage>) -> Vec<Value> {
        let choice = &mut self.choices[index];
        if self.reported.confidence {
            choice.answer.push_str(&part.text);
            choice.all.extend(part.tokens.iter().cloned());
        }
        choice.tokens.extend(part.tokens);
        let said = match &mut choice.listener {
            Some(listener) => listener.push(&part.text),
            None => vec![calls::Said::Text(part.text)],
        };
        self.told(index, said, progress)
    }

    fn finish(&mut self, index: usize, reason: FinishReason, done: Usage) -> Vec<Value> {
        self.usages[index] = done;
        let listener = self.choices[index].listener.take();
        let over = listener.as_ref().is_some_and(Listener::is_over);
        let held = listener.map_or_else(Vec::new, Listener::finish);
        let mut chunks = self.told(index, held, None);
        let left = !self.choices[index].tokens.is_empty();
        let logprobs = if left { self.take_logprobs(index) } else { None };
        let finish = finish_reason(reason, self.choices[index].calls > 0, over);
        let mut last = self.chunk(index, json!({}), Some(finish), logprobs, Some(done));
        if let Some(verbose) = &self.verbose {
            last["__verbose"] = verbose.clone();
        }
        tell_closed(&mut last["choices"][0], &self.choices[index].closed);
        if self.reported.confidence {
            let Choice { answer, all, .. } = &self.choices[index];
            last["choices"][0]["confidence"] = confidence(answer, all);
        }
        chunks.push(last);
        chunks
    }

    fn choice(&self, index: usize, listener: Option<Listener>, whole: &Whole) -> Value {
        let (mut content, mut calls, mut over) = (String::new(), Vec::new(), false);
        match listener {
            None => content.push_str(&whole.text),
            Some(mut listener) => {
                let mut all = listener.push(&whole.text);
                over = listener.is_over();
                all.extend(listener.finish());
                for said in all {
                    match said {
                        calls::Said::Text(text) => content.push_str(&text),
                        calls::Said::Call { name, arguments } => calls.push(tool_call(&name, &arguments)),
                    }
                }
            }
        }
        let finish = finish_reason(whole.ended().0, !calls.is_empty(), over);
        let mut message = json!({"role": "assistant", "content": content});
        if !calls.is_empty() {
            if content.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = calls.into();
        }
        if !whole.reasoning.is_empty() {
            message["reasoning_content"] = whole.reasoning.clone().into();
        }
        let mut choice = json!({"index": index, "message": message, "finish_reason": finish});
        if let Some(top) = self.reported.logprobs {
            choice["logprobs"] = json!({"content": logprobs::chat(&whole.tokens, top)});
        }
        tell_closed(&mut choice, &whole.closed);
        if self.reported.confidence {
            choice["confidence"] = confidence(&whole.text, &whole.tokens);
        }
        choice
    }
}

impl ReplyFormat for ChatReply {
    const DONE: bool = true;

    fn reply(mut self, answers: Vec<Whole>) -> Value {
        let usages: Vec<Usage> = answers.iter().map(|whole| whole.ended().1).collect();
        let total = total(&usages, answers.len());
        let listeners: Vec<Option<Listener>> =
            self.choices.iter_mut().map(|choice| choice.listener.take()).collect();
        let choices = answers
            .iter()
            .zip(listeners)
            .enumerate()
            .map(|(index, (whole, listener))| self.choice(index, listener, whole))
            .collect();
        let mut reply = self.envelope.around(choices);
        reply["usage"] = usage(&total);
        reply["timings"] = timings(&total);
        if let Some(verbose) = self.verbose {
            reply["__verbose"] = verbose;
        }
        reply
    }

    fn begin(&mut self) -> Vec<Value> {
        // An empty string would count as a piece of the answer.
        let role = json!({"role": "assistant", "content": null});
        (0..self.choices.len()).map(|index| self.chunk(index, role.clone(), None, None, None)).collect()
    }

    fn output(&mut self, index: usize, output: Output, progress: Option<Usage>) -> Vec<Value> {
        match output {
            Output::Started => {
                let progress = progress.unwrap_or_default();
                self.read(index, progress.cached_tokens, progress)
            }
            Output::Read(tokens) => self.read(index, tokens, progress.unwrap_or_default()),
            Output::Answer(part) => self.answer(index, part, progress),
            Output::Reasoning(text) => {
                let progress = progress.filter(|_| self.timings_per_token);
                vec![self.chunk(index, json!({ "reasoning_content": text }), None, None, progress)]
            }
            Output::Closed(closed) => {
                self.choices[index].closed.push(closed);
                Vec::new()
            }
            Output::End(reason, usage, _) => self.finish(index, reason, usage),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.include_usage {
            return Vec::new();
        }
        let mut last = self.envelope.around(Vec::new());
        let total = total(&self.usages, self.usages.len());
        last["usage"] = usage(&total);
        last["timings"] = timings(&total);
        vec![last]
    }
}

fn tool_call(name: &str, arguments: &str) -> Map<String, Value> {
    let id = format!("call_{:024x}", rand::random::<u128>() >> 32);
    let mut call = Map::new();
    call.insert("id".to_owned(), id.into());
    call.insert("type".to_owned(), "function".into());
    call.insert("function".to_owned(), json!({"name": name, "arguments": arguments}));
    call
}

/// A truncated answer ends with "length" even if it contains calls, unless all further text would
/// have been dropped (`over`).
fn finish_reason(reason: FinishReason, calls: bool, over: bool) -> &'static str {
    match reason {
        FinishReason::Length if !over => "length",
        FinishReason::Length => "tool_calls",
        FinishReason::Stop if calls => "tool_calls",
        FinishReason::Stop => "stop",
    }
}
