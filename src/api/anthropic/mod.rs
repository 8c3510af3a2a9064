//! Anthropic's Messages API, as agents speak it: translated into a chat request, answered by the same path.

mod content;
mod reply;
mod request;

use axum::extract::State;
use axum::response::{Json, Response};
use serde_json::{Value, json};

use self::reply::MessageReply;
use self::request::{own_name, translate};
use super::error::ApiError;
use super::json::JsonBody;
use super::openai::chat::Asked;
use super::spokes::Choice;
use super::state::App;
use super::stream;

/// `POST /v1/messages`.
pub(super) async fn messages(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let asked = asked(&app, &body)?;
    let stops = asked.stops.clone();
    let started = asked.start(&app, deadline, ("msg_", "message"), "messages").await.map_err(in_our_names)?;
    let (stream, spokes) = (started.manner.stream, started.spokes);
    let reply = MessageReply::new(started.envelope, started.listener, stops);
    Ok(spokes.sign(stream::respond(reply, started.generations, stream).await?))
}

/// `POST /v1/messages/count_tokens`.
pub(super) async fn count(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let tokens = asked(&app, &body)?.count(&app, deadline, "messages").await.map_err(in_our_names)?;
    Ok(Json(json!({"input_tokens": tokens})))
}

fn asked(app: &App, body: &JsonBody) -> Result<Asked, ApiError> {
    let chat = translate(&body.0)?;
    let choice = Choice::parse(&chat)?;
    let mut asked = Asked::parse(app, &chat, choice).map_err(in_our_names)?;
    if asked.manner.n > 1 {
        return Err(ApiError::field(
            "n",
            format!("found {}, expected 1: a message is one answer", asked.manner.n),
        ));
    }
    asked.manner.constraint_field = match asked.manner.constraint_field {
        "response_format" => "output_config.format",
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
