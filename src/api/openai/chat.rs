//! `POST /v1/chat/completions`.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use tokio_stream::StreamExt;

use super::chat_reply::{Answer, Choice, Envelope, Reply};
use super::chat_request::ChatRequest;
use super::chat_stream;
use crate::api::error::ApiError;
use crate::api::generation::{Generation, Output};
use crate::api::json::JsonBody;
use crate::api::state::App;
use crate::api::template::TemplateError;
use crate::engine::{EngineError, Generate};

/// Answers a conversation. What can be judged without the model is judged before waiting for it.
pub(in crate::api) async fn complete(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let request = ChatRequest::parse(body, app.sampling())?;
    let model = app.ready(deadline).await?;
    let template = app.template(&model, deadline).await?;
    let prompt =
        template.render(&request.turns, &request.template_parameters).map_err(|error| match error {
            TemplateError::Refused(_) => ApiError::field("messages", error.to_string()),
            TemplateError::Syntax(_) => ApiError::Model(error.to_string()),
        })?;
    let id = format!("chatcmpl-{:032x}", rand::random::<u128>());
    let generate = Generate {
        max_tokens: request.max_tokens,
        sampling: request.sampling,
        stop: request.stop,
        constraint: request.constraint,
        ..Generate::new(id.clone(), prompt)
    };
    let mut generation = Generation::start(&app, generate, deadline)?;
    // Whatever goes wrong before the first output is a plain status, streaming or not.
    let first = generation.next().await.unwrap_or_else(|| Err(EngineError::Stopped.into()))?;
    let object = if request.stream { "chat.completion.chunk" } else { "chat.completion" };
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let envelope = Envelope { id, object, created, model: app.model_id().to_owned() };
    if request.stream {
        return Ok(chat_stream::respond(envelope, first, generation, request.include_usage));
    }
    let reply = collect(envelope, first, generation).await?;
    Ok(Json(reply).into_response())
}

/// Waits for the end of the answer.
async fn collect(envelope: Envelope, first: Output, mut generation: Generation) -> Result<Reply, ApiError> {
    let mut message = Answer { role: "assistant", content: String::new(), reasoning_content: String::new() };
    let mut output = first;
    loop {
        match output {
            Output::Answer(text) => message.content.push_str(&text),
            Output::Reasoning(text) => message.reasoning_content.push_str(&text),
            Output::End(finish_reason, usage) => {
                let choices = [Choice { index: 0, message, finish_reason }];
                return Ok(Reply { envelope, choices, usage: (&usage).into(), timings: (&usage).into() });
            }
        }
        output = generation.next().await.unwrap_or_else(|| Err(EngineError::Stopped.into()))?;
    }
}
