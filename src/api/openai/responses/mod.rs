//! OpenAI's Responses API: translates requests into chat requests, which the same code answers. The
//! daemon stores no responses, so each request must contain its whole conversation.

mod input;
mod reply;
mod request;

use axum::extract::State;
use axum::response::{Json, Response};
use serde_json::{Value, json};

use self::reply::{ResponseReply, Settings};
use self::request::{DIALECT, translate};
use super::chat::Asked;
use crate::api::app::App;
use crate::api::body::JsonBody;
use crate::api::error::ApiError;
use crate::api::observe::RequestContext;
use crate::api::sse;

/// `POST /v1/responses`.
pub(in crate::api) async fn respond(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let asked = asked(&app, &body)?;
    let started = DIALECT.start(asked, &app, deadline, ("resp_", "response")).await?;
    let (stream, spokes) = (started.manner.stream, started.spokes);
    let settings = Settings::new(&body.0, &started.manner);
    let reply = ResponseReply::new(started.envelope, started.listener, settings);
    Ok(spokes.sign(sse::respond(reply, started.generations, stream).await?))
}

/// `POST /v1/responses/input_tokens`.
pub(in crate::api) async fn count(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let tokens = DIALECT.count(&asked(&app, &body)?, &app, deadline).await?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens})))
}

fn asked(app: &App, body: &JsonBody) -> Result<Asked, ApiError> {
    let chat = translate(&body.0)?;
    let name = chat.0.pointer("/response_format/json_schema/name").and_then(Value::as_str);
    RequestContext::current().set_schema_name(name);
    DIALECT.parse(app, &chat)
}
