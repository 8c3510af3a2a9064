//! Replies of the Responses API: whole responses, and stream events.

use serde_json::{Map, Value, json};

use crate::api::answer_stream::Output;
use crate::api::answer_streams::Whole;
use crate::api::blocks::{Block, Blocks, Step, What};
use crate::api::error::ApiError;
use crate::api::openai::envelope::{Envelope, tell_closed, timings};
use crate::api::request::AnswerOptions;
use crate::api::sse::ReplyFormat;
use crate::api::timings::{prompt_progress, so_far};
use crate::api::tools::calls::Listener;
use crate::engine::{FinishReason, Usage};

/// Request fields that a response repeats, and its reporting options.
#[derive(Debug)]
pub(super) struct Settings {
    repeated: Map<String, Value>,
    timings_per_token: bool,
    progress: bool,
}

/// Fields of a body that its response repeats.
pub(super) fn repeated(body: &Map<String, Value>) -> Map<String, Value> {
    let repeat = |(name, absent): (&str, Value)| {
        let given = body.get(name).filter(|value| !value.is_null());
        (name.to_owned(), given.cloned().unwrap_or(absent))
    };
    let fields = [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", true.into()),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", "auto".into()),
        ("tools", json!([])),
    ];
    fields.into_iter().map(repeat).collect()
}

impl Settings {
    pub(super) fn new(mut repeated: Map<String, Value>, options: &AnswerOptions) -> Self {
        let sampling = &options.generate.sampling;
        for (name, value) in [("temperature", sampling.temperature), ("top_p", sampling.top_p)] {
            repeated.insert(name.to_owned(), value.into());
        }
        let progress = options.generate.progress;
        Self { repeated, timings_per_token: options.timings_per_token, progress }
    }
}

/// A response under construction.
#[derive(Debug)]
pub(super) struct ResponseReply {
    envelope: Envelope,
    settings: Settings,
    blocks: Blocks,
    /// Complete items, and the id of the open one.
    output: Vec<Value>,
    item: String,
    /// Number of the next event.
    sequence: u64,
    end: Option<(FinishReason, Usage)>,
}

impl ResponseReply {
    pub(super) fn new(envelope: Envelope, listener: Option<Listener>, settings: Settings) -> Self {
        let blocks = Blocks::new(listener);
        Self { envelope, settings, blocks, output: Vec::new(), item: String::new(), sequence: 0, end: None }
    }

    /// The response as far as it exists.
    fn response(&self, end: Option<(FinishReason, Usage)>) -> Value {
        let (status, details) = match end {
            None => ("in_progress", Value::Null),
            Some((reason, _)) if self.blocks.is_cut(reason) => {
                ("incomplete", json!({"reason": "max_output_tokens"}))
            }
            Some(_) => ("completed", Value::Null),
        };
        let mut response = json!({
            "id": self.envelope.id,
            "object": "response",
            "created_at": self.envelope.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": details,
            "model": self.envelope.model,
            "output": self.output,
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "usage": end.map(|(_, usage)| tokens(&usage)),
        });
        for (name, value) in &self.settings.repeated {
            response[name] = value.clone();
        }
        if let Some(spokes) = &self.envelope.spokes {
            response["spokes"] = spokes.clone();
        }
        tell_closed(&mut response, self.blocks.kept());
        response
    }

    fn event(&mut self, kind: &str, fields: Value) -> Value {
        let mut event = json!({"type": kind, "sequence_number": self.sequence});
        self.sequence += 1;
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields);
        }
        event
    }

    /// Prompt progress.
    fn read(&mut self, tokens: u32, progress: Usage) -> Vec<Value> {
        if !self.settings.progress {
            return Vec::new();
        }
        let mut event = self.event("response.in_progress", json!({"response": self.response(None)}));
        event["prompt_progress"] = prompt_progress(tokens, &progress);
        if self.settings.timings_per_token {
            event["timings"] = timings(&so_far(tokens, &progress));
        }
        vec![event]
    }

    /// The events of a step.
    fn told(&mut self, step: Step) -> Vec<Value> {
        let index = step.index;
        match step.what {
            What::Open(block) => {
                self.item = new_id(&block);
                let item = item(&self.item, &block, "in_progress");
                let mut events = vec![
                    self.event("response.output_item.added", json!({"output_index": index, "item": item})),
                ];
                if let Some(part) = part(&block) {
                    let fields = self.place(index, json!({"content_index": 0, "part": part}));
                    events.push(self.event("response.content_part.added", fields));
                }
                events
            }
            What::More(block) => {
                let (name, said) = match block {
                    Block::Thinking(text) => ("response.reasoning_text.delta", text),
                    Block::Text(text) => ("response.output_text.delta", text),
                    Block::Call { arguments, .. } => ("response.function_call_arguments.delta", arguments),
                };
                let mut fields = self.place(index, json!({"delta": said}));
                if name == "response.output_text.delta" {
                    fields["logprobs"] = json!([]);
                }
                if !name.starts_with("response.function") {
                    fields["content_index"] = 0.into();
                }
                vec![self.event(name, fields)]
            }
            What::Close(block) => self.closed(index, &block),
        }
    }

    fn closed(&mut self, index: usize, block: &Block) -> Vec<Value> {
        let mut events = Vec::new();
        let (name, mut fields) = match block {
            Block::Thinking(text) => {
                ("response.reasoning_text.done", json!({"content_index": 0, "text": text}))
            }
            Block::Text(text) => {
                ("response.output_text.done", json!({"content_index": 0, "text": text, "logprobs": []}))
            }
            Block::Call { name, arguments, .. } => {
                ("response.function_call_arguments.done", json!({"name": name, "arguments": arguments}))
            }
        };
        fields = self.place(index, fields);
        events.push(self.event(name, fields));
        if let Some(part) = part(block) {
            let fields = self.place(index, json!({"content_index": 0, "part": part}));
            events.push(self.event("response.content_part.done", fields));
        }
        let item = item(&self.item, block, "completed");
        self.output.push(item.clone());
        events.push(self.event("response.output_item.done", json!({"output_index": index, "item": item})));
        events
    }

    /// The fields together with the position of the open item.
    fn place(&self, index: usize, mut fields: Value) -> Value {
        fields["item_id"] = self.item.clone().into();
        fields["output_index"] = index.into();
        fields
    }
}

impl ReplyFormat for ResponseReply {
    const DONE: bool = false;
    const NAMED: bool = true;

    fn reply(mut self, answers: Vec<Whole>) -> Value {
        let whole = answers.into_iter().next().unwrap_or_default();
        let end = whole.ended();
        let blocks = self.blocks.of(whole);
        self.output = blocks.iter().map(|block| item(&new_id(block), block, "completed")).collect();
        let mut response = self.response(Some(end));
        response["timings"] = timings(&end.1);
        response
    }

    fn begin(&mut self) -> Vec<Value> {
        let response = json!({"response": self.response(None)});
        vec![self.event("response.created", response.clone()), self.event("response.in_progress", response)]
    }

    fn output(&mut self, _: usize, output: Output, progress: Option<Usage>) -> Vec<Value> {
        let progress = progress.unwrap_or_default();
        let mut events = match &output {
            Output::Started => self.read(progress.cached_tokens, progress),
            Output::Read(tokens) => self.read(*tokens, progress),
            Output::End(reason, usage, _) => {
                self.end = Some((*reason, *usage));
                Vec::new()
            }
            Output::Answer(_) | Output::Reasoning(_) | Output::Closed(_) => Vec::new(),
        };
        let timed = self.settings.timings_per_token && self.end.is_none();
        for step in self.blocks.take(output) {
            let is_said = matches!(step.what, What::More(_));
            let mut told = self.told(step);
            if timed && is_said {
                for event in &mut told {
                    event["timings"] = timings(&progress);
                }
            }
            events.extend(told);
        }
        events
    }

    fn end(&mut self) -> Vec<Value> {
        let end = self.end.unwrap_or((FinishReason::Stop, Usage::default()));
        let name = if self.blocks.is_cut(end.0) { "response.incomplete" } else { "response.completed" };
        let mut event = self.event(name, json!({"response": self.response(Some(end))}));
        event["timings"] = timings(&end.1);
        vec![event]
    }

    fn error(error: &ApiError) -> Value {
        let body = error.openai_body();
        let of = |name: &str| body["error"][name].clone();
        json!({"type": "error", "code": of("type"), "message": of("message"), "param": of("param")})
    }
}

/// `usage`.
fn tokens(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

fn new_id(block: &Block) -> String {
    let prefix = match block {
        Block::Thinking(_) => "rs",
        Block::Text(_) => "msg",
        Block::Call { .. } => "fc",
    };
    format!("{prefix}_{:032x}", rand::random::<u128>())
}

/// The content part for a block; a call has none.
fn part(block: &Block) -> Option<Value> {
    match block {
        Block::Thinking(text) => Some(json!({"type": "reasoning_text", "text": text})),
        Block::Text(text) => {
            Some(json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []}))
        }
        Block::Call { .. } => None,
    }
}

/// A block as an item; one that has just begun has no content yet.
fn item(id: &str, block: &Block, status: &str) -> Value {
    let content: Vec<Value> = part(block).into_iter().filter(|_| status == "completed").collect();
    match block {
        Block::Thinking(_) => {
            json!({"id": id, "type": "reasoning", "summary": [], "content": content, "status": status})
        }
        Block::Text(_) => {
            json!({"id": id, "type": "message", "role": "assistant", "content": content, "status": status})
        }
        Block::Call { id: call_id, name, arguments } => json!({
            "id": id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments,
            "status": status,
        }),
    }
}
