//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{Json, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat_reply::ChatReply;
use super::envelope::Envelope;
use crate::api::answer_streams::AnswerStreams;
use crate::api::app::{App, Deadline, answered};
use crate::api::body::JsonBody;
use crate::api::conversation::Conversation;
use crate::api::conversation::calls::Listener;
use crate::api::error::{ApiError, Fields};
use crate::api::reasoning::Splitter;
use crate::api::request::{Endpoint, Manner};
use crate::api::spokes::{Choice, Chosen};
use crate::api::sse;
use crate::api::verbose::verbose;
use crate::engine::{Constraint, Query, Reply};
use crate::text::conversation::opens_thinking;

/// Most alternatives reported per token.
pub(super) const MOST_ALTERNATIVES: u32 = 20;

/// Fields of chat alone, as written.
#[derive(Debug, Deserialize)]
struct ChatFields {
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    confidence: Option<bool>,
}

/// What to report about an answer's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// `logprobs`, with this many alternatives.
    pub(super) logprobs: Option<u32>,
    /// Our extension: the model's confidence in each field.
    pub(super) confidence: bool,
}

impl Said {
    fn parse(body: &JsonBody, manner: &Manner) -> Result<Self, ApiError> {
        let written: ChatFields = body.parse()?;
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
        let json = matches!(manner.constraint, Some(Constraint::JsonSchema(_) | Constraint::JsonObject));
        if confidence && !json {
            let message = "needs an answer in JSON: send response_format with a JSON schema";
            return Err(ApiError::field("confidence", message));
        }
        Ok(Self { logprobs, confidence })
    }

    fn report(self) -> Option<u32> {
        self.logprobs.or(self.confidence.then_some(0))
    }
}

/// Answers a conversation.
pub(in crate::api) async fn complete(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let choice = Choice::parse(&body)?;
    answer(&app, &body, choice).await
}

/// Answers with these spokes.
pub(in crate::api) async fn answer(app: &App, body: &JsonBody, choice: Choice) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let asked = Asked::parse(app, body, choice)?;
    let object = if asked.manner.stream { "chat.completion.chunk" } else { "chat.completion" };
    let started = asked.start(app, deadline, ("chatcmpl-", object), "messages").await?;
    let Started { envelope, manner, said, listener, generations, spokes, verbose } = started;
    let reply = ChatReply::new(envelope, &manner, said, listener, verbose);
    Ok(spokes.sign(sse::respond(reply, generations, manner.stream).await?))
}

/// `POST /v1/chat/completions/input_tokens`: number of tokens in the prompt of a request.
pub(in crate::api) async fn count(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let asked = Asked::parse(&app, &body, Choice::parse(&body)?)?;
    let tokens = asked.count(&app, deadline, "messages").await?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens})))
}

/// A chat request, also when translated from another API. Everything that can be validated without
/// the model already is, so that no client waits for a refusal.
pub(in crate::api) struct Asked {
    pub(in crate::api) manner: Manner,
    /// Stop texts from the client; more may be appended.
    pub(in crate::api) stops: Vec<String>,
    said: Said,
    conversation: Conversation,
    choice: Choice,
}

/// A conversation that is being answered.
pub(in crate::api) struct Started {
    pub(in crate::api) envelope: Envelope,
    pub(in crate::api) manner: Manner,
    pub(super) said: Said,
    /// Finds calls in an answer, if there can be any.
    pub(in crate::api) listener: Option<Listener>,
    pub(in crate::api) generations: AnswerStreams,
    pub(in crate::api) spokes: Arc<Chosen>,
    verbose: Option<Value>,
}

impl Asked {
    /// Validates a body.
    pub(in crate::api) fn parse(app: &App, body: &JsonBody, choice: Choice) -> Result<Self, ApiError> {
        let mut manner = Manner::parse(body, Endpoint::Chat, app.sampling())?;
        let said = Said::parse(body, &manner)?;
        let mut conversation = Conversation::parse(body)?;
        conversation.check_end()?;
        conversation.fill_in(app.sampling().thinking);
        let stops = manner.stop.clone();
        conversation.constrain(&mut manner)?;
        Ok(Self { manner, stops, said, conversation, choice })
    }

    /// Number of tokens in the prompt; `field` is the prompt's field in the body.
    pub(in crate::api) async fn count(
        &self,
        app: &App,
        deadline: Deadline,
        field: &'static str,
    ) -> Result<usize, ApiError> {
        let model = app.ready(deadline).await?;
        let prompt = self.conversation.prompt_for(app.template(&model, deadline).await?, &self.manner)?;
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
        let Self { manner, said, conversation, choice, .. } = self;
        let model = app.ready(deadline).await?;
        let prompt = conversation.prompt_for(app.template(&model, deadline).await?, &manner)?;
        let thinking = opens_thinking(&prompt);
        let spokes = Chosen::take(app, choice, deadline).await?;
        let envelope = Envelope::new(app, prefix, object, &spokes);
        let requests =
            manner.requests(app, &model, deadline, &envelope.id, vec![prompt], said.report()).await?;
        let verbose = verbose(&requests, &manner, &model);
        let requests = requests.into_iter().map(|request| (request, Splitter::new(thinking))).collect();
        let fields = Fields { prompt: field, constraint: manner.constraint_field };
        let generations = AnswerStreams::start(app, requests, manner.n, &spokes, fields, deadline)?;
        let listener = conversation.listener();
        Ok(Started { envelope, manner, said, listener, generations, spokes, verbose })
    }
}
