//! `POST /v1/chat/completions`.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

use super::chat_reply::ChatReply;
use super::envelope::Envelope;
use crate::api::conversation::{Conversation, opens_thinking};
use crate::api::error::{ApiError, Fields};
use crate::api::generations::Generations;
use crate::api::json::JsonBody;
use crate::api::reasoning::Splitter;
use crate::api::request::{Endpoint, Manner};
use crate::api::spokes::{Choice, Chosen};
use crate::api::state::App;
use crate::api::stream;
use crate::engine::Constraint;

/// Alternatives that may be reported for each token.
pub(super) const MOST_ALTERNATIVES: u32 = 20;

/// The part of a body that is chat's own, as written.
#[derive(Debug, Deserialize)]
struct Written {
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    confidence: Option<bool>,
}

/// What is to be said of an answer's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// `logprobs`, with so many alternatives.
    pub(super) logprobs: Option<u32>,
    /// Ours: how sure the model was of each field.
    pub(super) confidence: bool,
}

impl Said {
    fn parse(body: &JsonBody, manner: &Manner) -> Result<Self, ApiError> {
        let written: Written = body.parse()?;
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

/// Answers with these spokes. What can be judged without the model is judged before waiting for it.
pub(in crate::api) async fn answer(app: &App, body: &JsonBody, choice: Choice) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let mut manner = Manner::parse(body, Endpoint::Chat, app.sampling())?;
    let said = Said::parse(body, &manner)?;
    let conversation = Conversation::parse(body)?;
    conversation.constrain(&mut manner)?;
    let model = app.ready(deadline).await?;
    let template = app.template(&model, deadline).await?;
    let prompt = conversation.prompt_for(template, &manner)?;
    let thinking = opens_thinking(&prompt);
    let object = if manner.stream { "chat.completion.chunk" } else { "chat.completion" };
    let spokes = Chosen::take(app, choice, deadline).await?;
    let envelope = Envelope::new(app, "chatcmpl", object, &spokes);
    let requests = manner.requests(app, &model, deadline, &envelope.id, vec![prompt], said.report()).await?;
    let requests = requests.into_iter().map(|request| (request, Splitter::new(thinking))).collect();
    let fields = Fields { prompt: "messages", constraint: manner.constraint_field };
    let generations = Generations::start(app, requests, manner.n, &spokes, fields, deadline)?;
    let reply = ChatReply::new(envelope, &manner, said, conversation.listener().as_ref());
    Ok(spokes.sign(stream::respond(reply, generations, manner.stream).await?))
}
