//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{Json, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat_reply::ChatReply;
use super::envelope::Envelope;
use crate::api::answer_streams::AnswerStreams;
use crate::api::app::{App, Deadline, answered};
use crate::api::body::JsonBody;
use crate::api::error::{ApiError, Fields};
use crate::api::reasoning::Splitter;
use crate::api::request::{AnswerFields, AnswerOptions, Endpoint, refuse};
use crate::api::spokes::{Chosen, SpokeChoice};
use crate::api::sse;
use crate::api::tools::calls::Listener;
use crate::api::tools::{constrain, listener};
use crate::api::verbose::verbose;
use crate::config::SamplingDefaults;
use crate::engine::{Constraint, Prompt, Query, Reply};
use crate::text::ChatTemplate;
use crate::text::conversation::{Conversation, PromptError, opens_thinking};
use crate::text::fields::{FieldError, take};

/// Most alternatives reported per token.
pub(super) const MOST_ALTERNATIVES: u32 = 20;

/// Fields of chat alone, as written.
#[derive(Debug, Deserialize)]
struct ReportFields {
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    confidence: Option<bool>,
}

/// What to report about an answer's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Reported {
    /// `logprobs`, with this many alternatives.
    pub(super) logprobs: Option<u32>,
    /// Our extension: the model's confidence in each field.
    pub(super) confidence: bool,
}

impl Reported {
    fn new(written: &ReportFields, constraint: Option<&Constraint>) -> Result<Self, ApiError> {
        let logprobs = match (written.logprobs.unwrap_or(false), written.top_logprobs) {
            (_, Some(top)) if top > MOST_ALTERNATIVES => {
                let message = format!("found {top}, expected 0 to {MOST_ALTERNATIVES}");
                return Err(ApiError::field("top_logprobs", message));
            }
            (false, Some(top)) if top > 0 => {
                return Err(ApiError::field("top_logprobs", "needs logprobs: true"));
            }
            (true, top) => Some(top.unwrap_or(0)),
            (false, _) => None,
        };
        let confidence = written.confidence.unwrap_or(false);
        let json = matches!(constraint, Some(Constraint::JsonSchema(_) | Constraint::JsonObject));
        if confidence && !json {
            let message = "needs an answer in JSON: send response_format with a JSON schema";
            return Err(ApiError::field("confidence", message));
        }
        Ok(Self { logprobs, confidence })
    }

    fn alternatives(self) -> Option<u32> {
        self.logprobs.or(self.confidence.then_some(0))
    }
}

/// Answers a conversation.
pub(in crate::api) async fn complete(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let request = ChatRequest::read(body.fields()?, app.sampling(), Conversation::take)?;
    answer(&app, request).await
}

/// Answers a request.
pub(in crate::api) async fn answer(app: &App, request: ChatRequest) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let object = if request.options.stream { "chat.completion.chunk" } else { "chat.completion" };
    let started = request.start(app, deadline, ("chatcmpl-", object), "messages").await?;
    let Started { envelope, options, reported, listener, answers, spokes, verbose } = started;
    let reply = ChatReply::new(envelope, &options, reported, listener, verbose);
    Ok(spokes.sign(sse::respond(reply, answers, options.stream).await?))
}

/// `POST /v1/chat/completions/input_tokens`: number of tokens in the prompt of a request.
pub(in crate::api) async fn count(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let request = ChatRequest::read(body.fields()?, app.sampling(), Conversation::take)?;
    let tokens = request.count(&app, deadline, "messages").await?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens})))
}

/// A chat request, also when translated from another API. Everything that can be validated without
/// the model already is, so that no client waits for a refusal.
pub(in crate::api) struct ChatRequest {
    pub(in crate::api) options: AnswerOptions,
    pub(in crate::api) spokes: SpokeChoice,
    reported: Reported,
    conversation: Conversation,
}

/// A conversation that is being answered.
pub(in crate::api) struct Started {
    pub(in crate::api) envelope: Envelope,
    pub(in crate::api) options: AnswerOptions,
    pub(super) reported: Reported,
    /// Finds calls in an answer, if there can be any.
    pub(in crate::api) listener: Option<Listener>,
    pub(in crate::api) answers: AnswerStreams,
    pub(in crate::api) spokes: Arc<Chosen>,
    verbose: Option<Value>,
}

impl ChatRequest {
    /// Reads the fields of a body; `conversation` takes those that determine the prompt.
    pub(in crate::api) fn read(
        mut fields: Map<String, Value>,
        defaults: &SamplingDefaults,
        conversation: impl FnOnce(&mut Map<String, Value>) -> Result<Conversation, FieldError>,
    ) -> Result<Self, ApiError> {
        refuse(&fields, Endpoint::Chat)?;
        let answer: AnswerFields = take(&mut fields)?;
        let spokes = SpokeChoice::new(take(&mut fields)?, answer.schema_name())?;
        let mut options = AnswerOptions::new(answer, defaults)?;
        let reported = Reported::new(&take(&mut fields)?, options.generate.constraint.as_ref())?;
        options.report(reported.alternatives());
        let mut conversation = conversation(&mut fields)?;
        conversation.check_end()?;
        conversation.think_by_default(defaults.thinking);
        constrain(&mut options, &conversation.tools)?;
        Ok(Self { options, spokes, reported, conversation })
    }

    /// Number of tokens in the prompt; `field` is the prompt's field in the body.
    pub(in crate::api) async fn count(
        &self,
        app: &App,
        deadline: Deadline,
        field: &'static str,
    ) -> Result<usize, ApiError> {
        let model = app.ready(deadline).await?;
        let prompt = self.prompt(app.template(&model, deadline).await?)?;
        let blame = |error| Fields { prompt: field, ..Fields::CHAT }.blame(error);
        let asked = app.engine().query(Query::Tokenize { prompt, whole: true }).map_err(blame)?;
        match answered(deadline.within(asked).await?).map_err(blame)? {
            Reply::Tokens(tokens) => Ok(tokens.len()),
            _ => Ok(0),
        }
    }

    /// Starts to answer, under an id with this prefix; `field` is the prompt's field in the body.
    pub(in crate::api) async fn start(
        self,
        app: &App,
        deadline: Deadline,
        (prefix, object): (&str, &'static str),
        field: &'static str,
    ) -> Result<Started, ApiError> {
        let model = app.ready(deadline).await?;
        let prompt = self.prompt(app.template(&model, deadline).await?)?;
        let Self { options, spokes, reported, conversation } = self;
        let splitter = Splitter::new(opens_thinking(&prompt));
        let spokes = Chosen::take(app, spokes, deadline).await?;
        let envelope = Envelope::new(app, prefix, object, &spokes);
        let requests = options.requests(app, &model, deadline, &envelope.id, vec![prompt], &spokes).await?;
        let verbose = verbose(&requests, &options, &model);
        let fields = Fields { prompt: field, constraint: options.constraint_field };
        let answers = AnswerStreams::start(app, requests, &splitter, options.n, &spokes, fields, deadline)?;
        let listener = listener(&conversation.tools);
        Ok(Started { envelope, options, reported, listener, answers, spokes, verbose })
    }

    fn prompt(&self, template: &ChatTemplate) -> Result<Prompt, PromptError> {
        self.conversation.answer_prompt(template, self.options.generate.constraint.is_some())
    }
}
