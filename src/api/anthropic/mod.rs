//! Anthropic's Messages API: translates requests into chat requests, which the same code answers.

mod content;
mod reply;
mod request;

use axum::extract::State;
use axum::response::{Json, Response};
use serde_json::{Value, json};

use self::reply::MessageReply;
use self::request::{DIALECT, translate};
use super::app::App;
use super::body::JsonBody;
use super::error::ApiError;
use super::openai::chat::ChatRequest;
use super::sse;

/// `POST /v1/messages`.
pub(super) async fn messages(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let started = DIALECT.start(read(&app, body)?, &app, deadline, ("msg_", "message")).await?;
    let (options, spokes) = (started.options, started.spokes);
    let reply = MessageReply::new(started.envelope, started.listener, options.generate.stop);
    Ok(spokes.sign(sse::respond(reply, started.answers, options.stream).await?))
}

/// `POST /v1/messages/count_tokens`.
pub(super) async fn count(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let tokens = DIALECT.count(&read(&app, body)?, &app, deadline).await?;
    Ok(Json(json!({"input_tokens": tokens})))
}

fn read(app: &App, body: JsonBody) -> Result<ChatRequest, ApiError> {
    let (turns, fields) = translate(body.fields()?)?;
    DIALECT.read(turns, fields, app.sampling())
}
