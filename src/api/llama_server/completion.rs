//! `POST /completion` and `/completions`: llama-server's own form of text completion.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::error::{ApiError, Fields};
use crate::api::generation::{Output, Part};
use crate::api::generations::{Generations, Whole};
use crate::api::json::JsonBody;
use crate::api::likelihood;
use crate::api::openai::envelope::{tell_closed, timings};
use crate::api::reasoning::Splitter;
use crate::api::request::{Endpoint, Manner, REPEAT_LAST, prompt};
use crate::api::spokes::{Choice, Chosen};
use crate::api::state::App;
use crate::api::stream::{self, Dialect};
use crate::engine::{Closed, FinishReason, Generate, Segment, TokenReport, Usage};

/// Alternatives that may be reported for each token.
const MOST_ALTERNATIVES: u32 = 100;

/// The part of a body that is this endpoint's own, as written.
#[derive(Debug, Deserialize)]
struct Written {
    n_probs: Option<u32>,
    return_tokens: Option<bool>,
}

/// Continues prompts. Several answers, to one prompt or to many, come as an array.
pub(in crate::api) async fn complete(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let manner = Manner::parse(&body, Endpoint::Native, app.sampling())?;
    let choice = Choice::parse(&body)?;
    let Written { n_probs, return_tokens } = body.parse()?;
    let probabilities = n_probs.filter(|&top| top > 0);
    if let Some(top) = probabilities.filter(|&top| top > MOST_ALTERNATIVES) {
        let message = format!("found {top}, expected 0 to {MOST_ALTERNATIVES}");
        return Err(ApiError::field("n_probs", message));
    }
    let return_tokens = return_tokens.unwrap_or(false);
    let written = body.0.get("prompt").cloned();
    let prompts = prompt::parse("prompt", written.as_ref(), Segment::markup)?;
    let many = prompts.len() > 1;
    let model = app.ready(deadline).await?;
    let id = format!("completion-{:032x}", rand::random::<u128>());
    let report = probabilities.or(return_tokens.then_some(0));
    let spokes = Chosen::take(&app, choice, deadline).await?;
    let requests = manner.requests(&app, &model, deadline, &id, prompts, report).await?;
    let answers = requests
        .iter()
        .enumerate()
        .map(|(index, request)| {
            let own = if many { index / manner.n as usize } else { 0 };
            let prompt = written.as_ref().filter(|_| many).and_then(|all| all.get(own)).or(written.as_ref());
            Answer {
                prompt: prompt.cloned().unwrap_or_default(),
                settings: settings(request, &manner),
                line: false,
                closed: Vec::new(),
            }
        })
        .collect();
    let reply = NativeReply {
        model: app.model_id().to_owned(),
        spokes: spokes.field(),
        timings_per_token: manner.timings_per_token,
        probabilities,
        return_tokens,
        stops: !manner.stop.is_empty(),
        answers,
    };
    let requests = requests.into_iter().map(|request| (request, Splitter::raw())).collect();
    let fields = Fields { prompt: "prompt", constraint: manner.constraint_field };
    let generations = Generations::start(&app, requests, manner.n, &spokes, fields, deadline)?;
    Ok(spokes.sign(stream::respond(reply, generations, manner.stream).await?))
}

/// The settings as they were understood.
fn settings(request: &Generate, manner: &Manner) -> Value {
    let sampling = &request.sampling;
    json!({
        "n_predict": request.max_tokens.map_or(-1, i64::from),
        "seed": sampling.seed.map_or(Value::from(-1), Value::from),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.penalties.repeat,
        "repeat_last_n": match sampling.penalties.last {
            None => i64::from(REPEAT_LAST),
            Some(u32::MAX) => -1,
            Some(last) => i64::from(last),
        },
        "presence_penalty": sampling.penalties.presence,
        "frequency_penalty": sampling.penalties.frequency,
        "stop": request.stop,
        "ignore_eos": request.ignore_end,
        "stream": manner.stream,
        "n_probs": request.report.unwrap_or(0),
        "timings_per_token": manner.timings_per_token,
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
    })
}

/// Answers in the making.
struct NativeReply {
    model: String,
    /// The spokes that answer.
    spokes: Option<Value>,
    timings_per_token: bool,
    probabilities: Option<u32>,
    return_tokens: bool,
    /// Whether there were stop texts.
    stops: bool,
    answers: Vec<Answer>,
}

struct Answer {
    prompt: Value,
    settings: Value,
    /// Whether a line break was sent.
    line: bool,
    /// Where it was kept from repeating itself.
    closed: Vec<Closed>,
}

impl NativeReply {
    /// The token that ended an answer, which llama-server reports like any other; tokens of a stop text it does not.
    fn ending(&self, last: Option<TokenReport>) -> Option<TokenReport> {
        last.filter(|_| !self.stops)
    }

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
        // The engine doesn't tell a stop text from an end of turn; with stop texts the former is the likelier.
        let stop_type = match reason {
            FinishReason::Length => "limit",
            FinishReason::Stop if self.stops => "word",
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
            "stopping_word": "",
            "tokens_cached": usage.cached_tokens,
            "timings": timings(&usage),
        });
        if let Some(spokes) = &self.spokes {
            reply["spokes"] = spokes.clone();
        }
        if let Some(top) = self.probabilities.filter(|_| !tokens.is_empty()) {
            reply["completion_probabilities"] = likelihood::llama_server(tokens, top);
        }
        reply
    }

    fn chunk(&mut self, index: usize, part: &Part, progress: Usage) -> Value {
        self.answers[index].line |= part.text.contains('\n');
        let mut chunk = json!({
            "index": index,
            "content": part.text,
            "tokens": self.ids(&part.tokens),
            "stop": false,
            "id_slot": -1,
            "tokens_predicted": progress.completion_tokens,
            "tokens_evaluated": progress.prompt_tokens,
        });
        if self.timings_per_token {
            chunk["timings"] = timings(&progress);
        }
        if let Some(top) = self.probabilities {
            chunk["completion_probabilities"] = likelihood::llama_server(&part.tokens, top);
        }
        chunk
    }
}

impl Dialect for NativeReply {
    /// llama-server ends its own streams with the chunk that says `stop`.
    const DONE: bool = false;

    fn reply(self, answers: Vec<Whole>) -> Value {
        let mut replies: Vec<Value> = answers
            .into_iter()
            .enumerate()
            .map(|(index, mut whole)| {
                whole.tokens.extend(self.ending(whole.last.take()));
                let mut reply = self.finished(index, &whole.text, &whole.tokens, whole.ended());
                tell_closed(&mut reply, &whole.closed);
                reply
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
            Output::Closed(closed) => {
                self.answers[index].closed.push(closed);
                Vec::new()
            }
            // A raw splitter finds none.
            Output::Started | Output::Reasoning(_) => Vec::new(),
            Output::End(reason, usage, last) => {
                let last = self.ending(last);
                let mut reply = self.finished(index, "", last.as_slice(), (reason, usage));
                tell_closed(&mut reply, &self.answers[index].closed);
                vec![reply]
            }
        }
    }

    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }
}
