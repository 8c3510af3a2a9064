//! Replies of the Messages API: whole messages, and stream events.

use serde_json::{Value, json};

use crate::api::answer_stream::Output;
use crate::api::answer_streams::Whole;
use crate::api::blocks::{Block, Blocks, Step, What};
use crate::api::error::ApiError;
use crate::api::openai::envelope::{Envelope, tell_closed};
use crate::api::sse::ReplyFormat;
use crate::api::tools::calls::Listener;
use crate::engine::{FinishReason, Usage};

/// A message under construction.
#[derive(Debug)]
pub(super) struct MessageReply {
    envelope: Envelope,
    blocks: Blocks,
    /// The client's stop texts.
    stops: Vec<String>,
    /// The events that end a stream.
    last: Vec<Value>,
}

impl MessageReply {
    pub(super) fn new(envelope: Envelope, listener: Option<Listener>, stops: Vec<String>) -> Self {
        Self { envelope, blocks: Blocks::new(listener), stops, last: Vec::new() }
    }

    fn message(&self, content: Vec<Value>, stop: Option<(&str, Option<&str>)>, usage: &Usage) -> Value {
        let (reason, sequence) = stop.unzip();
        let mut message = json!({
            "id": self.envelope.id,
            "type": "message",
            "role": "assistant",
            "model": self.envelope.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence.flatten(),
            "usage": tokens(usage),
        });
        if let Some(spokes) = &self.envelope.spokes {
            message["spokes"] = spokes.clone();
        }
        tell_closed(&mut message, self.blocks.kept());
        message
    }

    /// `stop_reason` and `stop_sequence`.
    fn stop(&self, reason: FinishReason, usage: &Usage) -> (&'static str, Option<&str>) {
        let sequence = usage.stopped_by.and_then(|stop| self.stops.get(stop as usize));
        match reason {
            reason if self.blocks.is_cut(reason) => ("max_tokens", None),
            _ if self.blocks.has_calls() => ("tool_use", None),
            _ if sequence.is_some() => ("stop_sequence", sequence.map(String::as_str)),
            _ => ("end_turn", None),
        }
    }
}

impl ReplyFormat for MessageReply {
    const DONE: bool = false;
    const NAMED: bool = true;

    fn reply(mut self, answers: Vec<Whole>) -> Value {
        let whole = answers.into_iter().next().unwrap_or_default();
        let (reason, usage) = whole.ended();
        let content = self.blocks.of(whole).iter().map(|block| content(block, true)).collect();
        self.message(content, Some(self.stop(reason, &usage)), &usage)
    }

    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn output(&mut self, _: usize, output: Output, progress: Option<Usage>) -> Vec<Value> {
        let mut events = Vec::new();
        if output == Output::Started {
            let message = self.message(Vec::new(), None, &progress.unwrap_or_default());
            events.push(json!({"type": "message_start", "message": message}));
        }
        let ended = match &output {
            Output::End(reason, usage, _) => Some((*reason, *usage)),
            _ => None,
        };
        events.extend(self.blocks.take(output).into_iter().flat_map(told));
        if let Some((reason, usage)) = ended {
            let (reason, sequence) = self.stop(reason, &usage);
            let mut delta = json!({"stop_reason": reason, "stop_sequence": sequence});
            tell_closed(&mut delta, self.blocks.kept());
            self.last = vec![
                json!({"type": "message_delta", "delta": delta, "usage": tokens(&usage)}),
                json!({"type": "message_stop"}),
            ];
        }
        events
    }

    fn end(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.last)
    }

    fn error(error: &ApiError) -> Value {
        error.anthropic_body()
    }
}

/// `usage`, in which cached tokens are counted separately.
fn tokens(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    })
}

/// A block. A call that is not complete has no input yet.
fn content(block: &Block, whole: bool) -> Value {
    match block {
        // The signature is for others to verify who wrote the thinking. No one has to, so it stays
        // empty.
        Block::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
        Block::Text(text) => json!({"type": "text", "text": text}),
        Block::Call { id, name, arguments } => {
            let arguments = if whole { arguments.as_str() } else { "{}" };
            let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
    }
}

/// The events of a step.
fn told(step: Step) -> Vec<Value> {
    let index = step.index;
    let delta = |delta: Value| json!({"type": "content_block_delta", "index": index, "delta": delta});
    match step.what {
        What::Open(block) => {
            vec![
                json!({"type": "content_block_start", "index": index, "content_block": content(&block, false)}),
            ]
        }
        What::More(Block::Thinking(text)) => vec![delta(json!({"type": "thinking_delta", "thinking": text}))],
        What::More(Block::Text(text)) => vec![delta(json!({"type": "text_delta", "text": text}))],
        What::More(Block::Call { arguments, .. }) => {
            vec![delta(json!({"type": "input_json_delta", "partial_json": arguments}))]
        }
        What::Close(block) => {
            let stop = json!({"type": "content_block_stop", "index": index});
            match block {
                Block::Thinking(_) => vec![delta(json!({"type": "signature_delta", "signature": ""})), stop],
                Block::Text(_) | Block::Call { .. } => vec![stop],
            }
        }
    }
}
