//! `POST /v1/completions`: continues text. Prompts are markup, because the client writes the
//! control tokens itself.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::MOST_ALTERNATIVES;
use super::envelope::{Envelope, tell_closed, timings, usage};
use crate::api::answer_stream::Output;
use crate::api::answer_streams::{AnswerStreams, Whole, total};
use crate::api::app::{App, Deadline};
use crate::api::body::JsonBody;
use crate::api::error::{ApiError, Fields};
use crate::api::logprobs::Legacy;
use crate::api::reasoning::Splitter;
use crate::api::request::{AnswerFields, AnswerOptions, Endpoint, prompt, refuse};
use crate::api::spokes::{Chosen, SpokeChoice};
use crate::api::sse::{self, ReplyFormat};
use crate::api::timings::{prompt_progress, so_far};
use crate::api::verbose::verbose;
use crate::config::SamplingDefaults;
use crate::engine::{Closed, FinishReason, Prompt, Query, Reply, Segment, Usage};
use crate::text::fields::{present, take};

/// Fields of this endpoint alone, as written.
#[derive(Debug, Deserialize)]
struct CompletionFields {
    #[serde(default, deserialize_with = "present")]
    prompt: Option<Value>,
    logprobs: Option<u32>,
    echo: Option<bool>,
}

/// A request, with all that can be validated without the model.
struct CompletionRequest {
    options: AnswerOptions,
    spokes: SpokeChoice,
    prompts: Vec<Prompt>,
    logprobs: Option<u32>,
    /// Whether answers repeat their prompts.
    echo: bool,
}

impl CompletionRequest {
    fn read(mut fields: Map<String, Value>, defaults: &SamplingDefaults) -> Result<Self, ApiError> {
        refuse(&fields, Endpoint::Text)?;
        let answer: AnswerFields = take(&mut fields)?;
        let spokes = SpokeChoice::new(take(&mut fields)?, answer.schema_name())?;
        let mut options = AnswerOptions::new(answer, defaults)?;
        let CompletionFields { prompt, logprobs, echo } = take(&mut fields)?;
        if let Some(top) = logprobs.filter(|&top| top > MOST_ALTERNATIVES) {
            let message = format!("found {top}, expected 0 to {MOST_ALTERNATIVES}");
            return Err(ApiError::field("logprobs", message));
        }
        let echo = echo.unwrap_or(false);
        if echo && logprobs.is_some() {
            let message = "can't be combined with logprobs: probabilities are reported for answers only";
            return Err(ApiError::field("echo", message));
        }
        options.report(logprobs);
        let prompts = prompt::parse("prompt", prompt.as_ref(), Segment::markup)?;
        Ok(Self { options, spokes, prompts, logprobs, echo })
    }
}

/// Continues prompts.
pub(in crate::api) async fn complete(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let request = CompletionRequest::read(body.fields()?, app.sampling())?;
    let CompletionRequest { options, spokes, prompts, logprobs, echo } = request;
    let model = app.ready(deadline).await?;
    let mut echoed = Vec::new();
    if echo {
        for prompt in &prompts {
            echoed.push(text(&app, prompt, deadline).await?);
        }
    }
    let spokes = Chosen::take(&app, spokes, deadline).await?;
    let envelope = Envelope::new(&app, "cmpl-", "text_completion", &spokes);
    let requests = options.requests(&app, &model, deadline, &envelope.id, prompts, &spokes).await?;
    let verbose = verbose(&requests, &options, &model);
    let reply = TextReply {
        envelope,
        include_usage: options.include_usage,
        timings_per_token: options.timings_per_token,
        progress: options.generate.progress,
        verbose,
        per_prompt: options.n as usize,
        logprobs,
        echoed,
        places: vec![Legacy::default(); requests.len()],
        closed: vec![Vec::new(); requests.len()],
        usages: vec![Usage::default(); requests.len()],
    };
    let fields = Fields { prompt: "prompt", constraint: options.constraint_field };
    let raw = Splitter::raw();
    let answers = AnswerStreams::start(&app, requests, &raw, options.n, &spokes, fields, deadline)?;
    Ok(spokes.sign(sse::respond(reply, answers, options.stream).await?))
}

/// The text of a prompt.
async fn text(app: &App, prompt: &Prompt, deadline: Deadline) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    for segment in prompt {
        bytes.extend_from_slice(segment.text.as_bytes());
        if !segment.ids.is_empty() {
            let query = app.engine().query(Query::Pieces(segment.ids.clone()))?;
            let fields = Fields { prompt: "prompt", ..Fields::CHAT };
            let answer = crate::api::app::answered(deadline.within(query).await?);
            if let Reply::Pieces(pieces) = answer.map_err(|error| fields.blame(error))? {
                bytes.extend(pieces.into_iter().flatten());
            }
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A text completion under construction.
struct TextReply {
    envelope: Envelope,
    include_usage: bool,
    timings_per_token: bool,
    /// Whether the stream reports prompt progress.
    progress: bool,
    /// The engine's request as shown in `__verbose`, if the client asked for it.
    verbose: Option<Value>,
    /// Number of answers per prompt.
    per_prompt: usize,
    logprobs: Option<u32>,
    /// Texts of the prompts, if the answers repeat them.
    echoed: Vec<String>,
    places: Vec<Legacy>,
    /// Where each answer was kept from repeating itself.
    closed: Vec<Vec<Closed>>,
    usages: Vec<Usage>,
}

impl TextReply {
    fn echoed(&self, index: usize) -> &str {
        self.echoed.get(index / self.per_prompt).map_or("", String::as_str)
    }

    fn chunk(&self, index: usize, text: &str, logprobs: Value, finish: Option<FinishReason>) -> Value {
        let choice = json!({"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish});
        self.envelope.around(vec![choice])
    }

    /// Prompt progress of an answer.
    fn read(&self, index: usize, tokens: u32, progress: Usage) -> Vec<Value> {
        if !self.progress {
            return Vec::new();
        }
        let mut chunk = self.chunk(index, "", Value::Null, None);
        chunk["prompt_progress"] = prompt_progress(tokens, &progress);
        if self.timings_per_token {
            chunk["timings"] = timings(&so_far(tokens, &progress));
        }
        vec![chunk]
    }
}

impl ReplyFormat for TextReply {
    const DONE: bool = true;

    fn reply(mut self, answers: Vec<Whole>) -> Value {
        let mut choices = Vec::with_capacity(answers.len());
        let mut usages = Vec::with_capacity(answers.len());
        for (index, whole) in answers.iter().enumerate() {
            let (reason, usage) = whole.ended();
            usages.push(usage);
            let logprobs = self.logprobs.map(|top| self.places[index].more(&whole.tokens, top));
            let text = format!("{}{}", self.echoed(index), whole.text);
            let mut choice =
                json!({"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason});
            tell_closed(&mut choice, &whole.closed);
            choices.push(choice);
        }
        let total = total(&usages, self.per_prompt);
        let mut reply = self.envelope.around(choices);
        reply["usage"] = usage(&total);
        reply["timings"] = timings(&total);
        if let Some(verbose) = self.verbose {
            reply["__verbose"] = verbose;
        }
        reply
    }

    fn begin(&mut self) -> Vec<Value> {
        if self.echoed.is_empty() {
            return Vec::new();
        }
        (0..self.usages.len()).map(|index| self.chunk(index, self.echoed(index), Value::Null, None)).collect()
    }

    fn output(&mut self, index: usize, output: Output, progress: Option<Usage>) -> Vec<Value> {
        let mut chunk = match output {
            Output::Answer(part) => {
                let logprobs = self.logprobs.map(|top| self.places[index].more(&part.tokens, top));
                self.chunk(index, &part.text, logprobs.into(), None)
            }
            Output::Started => {
                let progress = progress.unwrap_or_default();
                return self.read(index, progress.cached_tokens, progress);
            }
            Output::Read(tokens) => return self.read(index, tokens, progress.unwrap_or_default()),
            Output::Closed(closed) => {
                self.closed[index].push(closed);
                return Vec::new();
            }
            // A raw splitter finds no thinking.
            Output::Reasoning(_) => return Vec::new(),
            Output::End(reason, usage, _) => {
                self.usages[index] = usage;
                let mut last = self.chunk(index, "", Value::Null, Some(reason));
                last["timings"] = timings(&usage);
                if let Some(verbose) = &self.verbose {
                    last["__verbose"] = verbose.clone();
                }
                tell_closed(&mut last["choices"][0], &self.closed[index]);
                return vec![last];
            }
        };
        if let Some(progress) = progress.filter(|_| self.timings_per_token) {
            chunk["timings"] = timings(&progress);
        }
        vec![chunk]
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.include_usage {
            return Vec::new();
        }
        let mut last = self.envelope.around(Vec::new());
        let total = total(&self.usages, self.per_prompt);
        last["usage"] = usage(&total);
        last["timings"] = timings(&total);
        vec![last]
    }
}
