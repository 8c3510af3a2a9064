//! OpenAI's Responses API: translates requests into chat requests, which the same code answers. The
//! daemon stores no responses, so each request must contain its whole conversation.

mod input;
mod reply;
mod request;

use axum::extract::State;
use axum::response::{Json, Response};
use serde_json::{Map, Value, json};

use self::reply::{ResponseReply, Settings, repeated};
use self::request::{DIALECT, translate};
use super::chat::ChatRequest;
use crate::api::app::App;
use crate::api::body::JsonBody;
use crate::api::error::ApiError;
use crate::api::observe::RequestContext;
use crate::api::sse;

/// `POST /v1/responses`.
pub(in crate::api) async fn respond(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let fields = body.fields()?;
    let repeated = repeated(&fields);
    let started = DIALECT.start(read(&app, fields)?, &app, deadline, ("resp_", "response")).await?;
    let (options, spokes) = (started.options, started.spokes);
    let settings = Settings::new(repeated, &options);
    let reply = ResponseReply::new(started.envelope, started.listener, settings);
    Ok(spokes.sign(sse::respond(reply, started.answers, options.stream).await?))
}

/// `POST /v1/responses/input_tokens`.
pub(in crate::api) async fn count(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let tokens = DIALECT.count(&read(&app, body.fields()?)?, &app, deadline).await?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens})))
}

fn read(app: &App, fields: Map<String, Value>) -> Result<ChatRequest, ApiError> {
    let (turns, fields) = translate(fields)?;
    let name = fields.get("response_format").and_then(|format| format.pointer("/json_schema/name"));
    RequestContext::current().set_schema_name(name.and_then(Value::as_str));
    DIALECT.read(turns, fields, app.sampling())
}
