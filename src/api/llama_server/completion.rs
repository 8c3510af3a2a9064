//! `POST /completion` and `/completions`: text completion in llama-server's own form.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::answer_stream::{Output, Part};
use crate::api::answer_streams::{AnswerStreams, Whole};
use crate::api::app::App;
use crate::api::body::JsonBody;
use crate::api::error::{ApiError, Fields};
use crate::api::logprobs;
use crate::api::openai::envelope::{tell_closed, timings};
use crate::api::reasoning::Splitter;
use crate::api::request::{AnswerFields, AnswerOptions, Endpoint, prompt, refuse};
use crate::api::spokes::{Chosen, SpokeChoice};
use crate::api::sse::{self, ReplyFormat};
use crate::api::timings::{prompt_progress, so_far};
use crate::api::verbose::settings;
use crate::config::SamplingDefaults;
use crate::engine::{Closed, FinishReason, Prompt, Segment, TokenReport, Usage};
use crate::text::fields::{present, take};

/// Most alternatives reported per token.
const MOST_ALTERNATIVES: u32 = 100;

/// Fields of this endpoint alone, as written.
#[derive(Debug, Deserialize)]
struct CompletionFields {
    #[serde(default, deserialize_with = "present")]
    prompt: Option<Value>,
    n_probs: Option<u32>,
    post_sampling_probs: Option<bool>,
    return_tokens: Option<bool>,
    response_fields: Option<Vec<String>>,
}

/// Most response fields that one request may select.
const MOST_FIELDS: usize = 256;

/// A request, with all that can be validated without the model.
struct CompletionRequest {
    options: AnswerOptions,
    spokes: SpokeChoice,
    prompts: Vec<Prompt>,
    /// The prompts as they were written, which the reply repeats.
    written: Value,
    /// Number of alternatives whose probabilities are reported.
    probabilities: Option<u32>,
    return_tokens: bool,
    /// Paths of the response fields to send; empty for all.
    fields: Vec<String>,
}

impl CompletionRequest {
    fn read(mut fields: Map<String, Value>, defaults: &SamplingDefaults) -> Result<Self, ApiError> {
        refuse(&fields, Endpoint::Native)?;
        let answer: AnswerFields = take(&mut fields)?;
        let spokes = SpokeChoice::new(take(&mut fields)?, answer.schema_name())?;
        let mut options = AnswerOptions::new(answer, defaults)?;
        let own: CompletionFields = take(&mut fields)?;
        let probabilities = own.n_probs.filter(|&top| top > 0);
        if let Some(top) = probabilities.filter(|&top| top > MOST_ALTERNATIVES) {
            let message = format!("found {top}, expected 0 to {MOST_ALTERNATIVES}");
            return Err(ApiError::field("n_probs", message));
        }
        let return_tokens = own.return_tokens.unwrap_or(false);
        options.report(probabilities.or(return_tokens.then_some(0)));
        options.generate.sampled = own.post_sampling_probs.unwrap_or(false);
        let fields = own.response_fields.unwrap_or_default();
        if fields.len() > MOST_FIELDS {
            let message = format!("has {} entries, expected at most {MOST_FIELDS}", fields.len());
            return Err(ApiError::field("response_fields", message));
        }
        let prompts = prompt::parse("prompt", own.prompt.as_ref(), Segment::markup)?;
        let written = own.prompt.unwrap_or_default();
        Ok(Self { options, spokes, prompts, written, probabilities, return_tokens, fields })
    }
}

/// Continues prompts. Several answers, to one prompt or to many, are returned as an array.
pub(in crate::api) async fn complete(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let request = CompletionRequest::read(body.fields()?, app.sampling())?;
    let CompletionRequest { options, spokes, prompts, written, probabilities, return_tokens, fields } =
        request;
    let many = prompts.len() > 1;
    let model = app.ready(deadline).await?;
    let id = format!("completion-{:032x}", rand::random::<u128>());
    let spokes = Chosen::take(&app, spokes, deadline).await?;
    let requests = options.requests(&app, &model, deadline, &id, prompts, &spokes).await?;
    let answers = requests
        .iter()
        .enumerate()
        .map(|(index, request)| {
            let own = if many { index / options.n as usize } else { 0 };
            let prompt = Some(&written).filter(|_| many).and_then(|all| all.get(own)).unwrap_or(&written);
            Answer {
                prompt: prompt.clone(),
                settings: settings(request, &options, &model),
                line: false,
                closed: Vec::new(),
            }
        })
        .collect();
    let reply = NativeReply {
        model: app.model_id().to_owned(),
        spokes: spokes.field(),
        timings_per_token: options.timings_per_token,
        progress: options.generate.progress,
        probabilities,
        sampled: options.generate.sampled,
        return_tokens,
        stops: options.generate.stop.clone(),
        fields,
        answers,
    };
    let fields = Fields { prompt: "prompt", constraint: options.constraint_field };
    let raw = Splitter::raw();
    let answers = AnswerStreams::start(&app, requests, &raw, options.n, &spokes, fields, deadline)?;
    Ok(spokes.sign(sse::respond(reply, answers, options.stream).await?))
}

/// Answers under construction.
#[allow(clippy::struct_excessive_bools, reason = "switches that have nothing to do with each other")]
struct NativeReply {
    model: String,
    /// The spokes that answer.
    spokes: Option<Value>,
    timings_per_token: bool,
    /// Whether the stream reports prompt progress.
    progress: bool,
    probabilities: Option<u32>,
    /// Whether the probabilities are those that the sampler drew from.
    sampled: bool,
    return_tokens: bool,
    stops: Vec<String>,
    /// Paths of the response fields to send; empty for all.
    fields: Vec<String>,
    answers: Vec<Answer>,
}

struct Answer {
    prompt: Value,
    settings: Value,
    /// Whether a line break was sent.
    line: bool,
    /// Where the answer was kept from repeating itself.
    closed: Vec<Closed>,
}

impl NativeReply {
    fn ids(&self, tokens: &[TokenReport]) -> Value {
        let tokens = tokens.iter().filter(|_| self.return_tokens);
        tokens.map(|report| report.token.id).collect()
    }

    fn finished(
        &self,
        index: usize,
        content: &str,
        tokens: &[TokenReport],
        end: (FinishReason, Usage),
    ) -> Value {
        let (reason, usage) = end;
        let answer = &self.answers[index];
        let word = usage.stopped_by.and_then(|stop| self.stops.get(stop as usize));
        let stop_type = match reason {
            FinishReason::Length => "limit",
            FinishReason::Stop if word.is_some() => "word",
            FinishReason::Stop => "eos",
        };
        let mut reply = json!({
            "index": index,
            "content": content,
            "tokens": self.ids(tokens),
            "id_slot": -1,
            "stop": true,
            "model": self.model,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "generation_settings": answer.settings,
            "prompt": answer.prompt,
            "has_new_line": answer.line || content.contains('\n'),
            "truncated": false,
            "stop_type": stop_type,
            "stopping_word": word.map_or("", String::as_str),
            "tokens_cached": usage.cached_tokens,
            "timings": timings(&usage),
        });
        if let Some(spokes) = &self.spokes {
            reply["spokes"] = spokes.clone();
        }
        if let Some(top) = self.probabilities.filter(|_| !tokens.is_empty()) {
            reply["completion_probabilities"] = self.likelihoods(tokens, top);
        }
        reply
    }

    fn chunk(&mut self, index: usize, part: &Part, progress: Usage) -> Value {
        self.answers[index].line |= part.text.contains('\n');
        let mut chunk = self.chunk_of(index, part, progress);
        if self.timings_per_token {
            chunk["timings"] = timings(&progress);
        }
        if let Some(top) = self.probabilities {
            chunk["completion_probabilities"] = self.likelihoods(&part.tokens, top);
        }
        chunk
    }

    fn chunk_of(&self, index: usize, part: &Part, progress: Usage) -> Value {
        json!({
            "index": index,
            "content": part.text,
            "tokens": self.ids(&part.tokens),
            "stop": false,
            "id_slot": -1,
            "tokens_predicted": progress.completion_tokens,
            "tokens_evaluated": progress.prompt_tokens,
        })
    }

    fn likelihoods(&self, tokens: &[TokenReport], top: u32) -> Value {
        if self.sampled {
            logprobs::llama_server_sampled(tokens, top)
        } else {
            logprobs::llama_server(tokens, top)
        }
    }

    /// The response fields that the client selected, each under its path, as in
    /// `generation_settings/n_predict`.
    fn chosen(&self, reply: Value) -> Value {
        if self.fields.is_empty() {
            return reply;
        }
        let found = |path: &String| {
            let value = path.split('/').try_fold(&reply, |value, key| value.get(key))?;
            Some((path.clone(), value.clone()))
        };
        Value::Object(self.fields.iter().filter_map(found).collect())
    }

    /// Prompt progress of an answer.
    fn read(&self, index: usize, tokens: u32, progress: Usage) -> Vec<Value> {
        if !self.progress {
            return Vec::new();
        }
        let mut chunk = self.chunk_of(index, &Part::default(), progress);
        chunk["prompt_progress"] = prompt_progress(tokens, &progress);
        if self.timings_per_token {
            chunk["timings"] = timings(&so_far(tokens, &progress));
        }
        vec![chunk]
    }
}

impl ReplyFormat for NativeReply {
    /// llama-server ends its own streams with the chunk that has `stop`, not with `[DONE]`.
    const DONE: bool = false;

    fn reply(self, answers: Vec<Whole>) -> Value {
        let mut replies: Vec<Value> = answers
            .into_iter()
            .enumerate()
            .map(|(index, mut whole)| {
                let ending = whole.last.take();
                whole.tokens.extend(ending.filter(|_| whole.ended().1.stopped_by.is_none()));
                let mut reply = self.finished(index, &whole.text, &whole.tokens, whole.ended());
                tell_closed(&mut reply, &whole.closed);
                self.chosen(reply)
            })
            .collect();
        if replies.len() > 1 { replies.into() } else { replies.pop().unwrap_or_default() }
    }

    fn error(error: &ApiError) -> Value {
        error.body()
    }

    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn output(&mut self, index: usize, output: Output, progress: Option<Usage>) -> Vec<Value> {
        match output {
            Output::Answer(part) => vec![self.chunk(index, &part, progress.unwrap_or_default())],
            Output::Started => {
                let progress = progress.unwrap_or_default();
                self.read(index, progress.cached_tokens, progress)
            }
            Output::Read(tokens) => self.read(index, tokens, progress.unwrap_or_default()),
            Output::Closed(closed) => {
                self.answers[index].closed.push(closed);
                Vec::new()
            }
            // A raw splitter finds no thinking.
            Output::Reasoning(_) => Vec::new(),
            Output::End(reason, usage, last) => {
                // llama-server reports the token that ended an answer like any other, but not the
                // tokens of a stop text.
                let last = last.filter(|_| usage.stopped_by.is_none());
                let mut reply = self.finished(index, "", last.as_slice(), (reason, usage));
                tell_closed(&mut reply, &self.answers[index].closed);
                vec![self.chosen(reply)]
            }
        }
    }

    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }
}
