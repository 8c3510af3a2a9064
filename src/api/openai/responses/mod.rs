//! OpenAI's Responses API: translated into a chat request, answered by the same path. Nothing is kept: each request brings
//! its whole conversation.

mod input;
mod reply;
mod request;

use axum::extract::State;
use axum::response::{Json, Response};
use serde_json::{Value, json};

use self::reply::{ResponseReply, Settings};
use self::request::{own_name, translate};
use super::chat::Asked;
use crate::api::error::ApiError;
use crate::api::json::JsonBody;
use crate::api::observe::Record;
use crate::api::spokes::Choice;
use crate::api::state::App;
use crate::api::stream;

/// `POST /v1/responses`.
pub(in crate::api) async fn respond(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let asked = asked(&app, &body)?;
    let started = asked.start(&app, deadline, ("resp_", "response"), "input").await.map_err(in_our_names)?;
    let (stream, spokes) = (started.manner.stream, started.spokes);
    let settings = Settings::new(&body.0, &started.manner);
    let reply = ResponseReply::new(started.envelope, started.listener, settings);
    Ok(spokes.sign(stream::respond(reply, started.generations, stream).await?))
}

/// `POST /v1/responses/input_tokens`.
pub(in crate::api) async fn count(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let tokens = asked(&app, &body)?.count(&app, deadline, "input").await.map_err(in_our_names)?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens})))
}

fn asked(app: &App, body: &JsonBody) -> Result<Asked, ApiError> {
    let chat = translate(&body.0)?;
    let name = chat.0.pointer("/response_format/json_schema/name").and_then(Value::as_str);
    Record::current().set_schema_name(name);
    let choice = Choice::parse(&chat)?;
    let mut asked = Asked::parse(app, &chat, choice).map_err(in_our_names)?;
    if asked.manner.n > 1 {
        return Err(ApiError::field(
            "n",
            format!("found {}, expected 1: a response is one answer", asked.manner.n),
        ));
    }
    asked.manner.constraint_field = match asked.manner.constraint_field {
        "response_format" => "text.format",
        field => field,
    };
    Ok(asked)
}

/// A fault that was found in the translation, under the name that the client knows.
fn in_our_names(error: ApiError) -> ApiError {
    match error {
        ApiError::Field { field, message } => ApiError::Field { field: own_name(&field), message },
        other => other,
    }
}
