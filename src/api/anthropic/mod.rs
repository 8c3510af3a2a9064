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
use super::sse;

/// `POST /v1/messages`.
pub(super) async fn messages(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let asked = DIALECT.parse(&app, &translate(&body.0)?)?;
    let stops = asked.stops.clone();
    let started = DIALECT.start(asked, &app, deadline, ("msg_", "message")).await?;
    let (stream, spokes) = (started.manner.stream, started.spokes);
    let reply = MessageReply::new(started.envelope, started.listener, stops);
    Ok(spokes.sign(sse::respond(reply, started.generations, stream).await?))
}

/// `POST /v1/messages/count_tokens`.
pub(super) async fn count(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let asked = DIALECT.parse(&app, &translate(&body.0)?)?;
    let tokens = DIALECT.count(&asked, &app, deadline).await?;
    Ok(Json(json!({"input_tokens": tokens})))
}
