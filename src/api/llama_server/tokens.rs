//! `POST /tokenize`, `/detokenize` and `/apply-template`: token ids of a text, text of token ids,
//! and prompts of conversations.

use axum::extract::State;
use axum::response::Json;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::app::{App, Deadline, answered};
use crate::api::body::JsonBody;
use crate::api::error::{ApiError, Fields};
use crate::api::request::prompt;
use crate::engine::{Query, Reply, Segment};
use crate::text::conversation::Conversation;
use crate::text::fields::{kind, present};

#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    #[serde(default, deserialize_with = "present")]
    content: Option<Value>,
    add_special: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    #[serde(default, deserialize_with = "present")]
    tokens: Option<Value>,
}

/// Token ids of a text; with `with_pieces`, also their texts.
pub(in crate::api) async fn tokenize(
    State(app): State<App>,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let request: TokenizeRequest = body.parse()?;
    let markup = request.parse_special.unwrap_or(true);
    let text: fn(String) -> Segment = if markup { Segment::markup } else { Segment::plain };
    let content = request.content.ok_or_else(|| ApiError::field("content", "is missing"))?;
    let content = match &content {
        Value::Array(items) if items.is_empty() => Vec::new(),
        content => prompt::one("content", content, text)?,
    };
    app.ready(deadline).await?;
    let query = Query::Tokenize { prompt: content, whole: request.add_special.unwrap_or(false) };
    let Reply::Tokens(ids) = ask(&app, query, "content", deadline).await? else {
        return Ok(Json(json!({"tokens": []})));
    };
    if !request.with_pieces.unwrap_or(false) {
        return Ok(Json(json!({"tokens": ids})));
    }
    let pieces = pieces(&app, ids.clone(), "content", deadline).await?;
    let tokens: Value = ids
        .into_iter()
        .zip(pieces)
        // A part of a character is no text, so its bytes are sent instead.
        .map(|(id, piece)| match String::from_utf8(piece) {
            Ok(text) => json!({"id": id, "piece": text}),
            Err(error) => json!({"id": id, "piece": error.into_bytes()}),
        })
        .collect();
    Ok(Json(json!({"tokens": tokens})))
}

/// The text of token ids.
pub(in crate::api) async fn detokenize(
    State(app): State<App>,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let DetokenizeRequest { tokens } = body.parse()?;
    let ids = match tokens {
        Some(Value::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(index, item)| prompt::token_id(&format!("tokens[{index}]"), item))
            .collect::<Result<Vec<u32>, _>>()?,
        None => return Err(ApiError::field("tokens", "is missing")),
        Some(other) => {
            let message = format!("found {}, expected an array of token ids", kind(&other));
            return Err(ApiError::field("tokens", message));
        }
    };
    let model = app.ready(deadline).await?;
    if let Some(index) = ids.iter().position(|&id| id >= model.n_vocab) {
        let message =
            format!("{} is not a token id: the vocabulary has {} entries", ids[index], model.n_vocab);
        return Err(ApiError::field(format!("tokens[{index}]"), message));
    }
    let bytes: Vec<u8> = pieces(&app, ids, "tokens", deadline).await?.into_iter().flatten().collect();
    Ok(Json(json!({"content": String::from_utf8_lossy(&bytes)})))
}

/// The prompt of a chat request.
pub(in crate::api) async fn apply_template(
    State(app): State<App>,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let mut conversation = Conversation::take(&mut body.fields()?)?;
    conversation.check_end()?;
    conversation.think_by_default(app.sampling().thinking);
    let model = app.ready(deadline).await?;
    let prompt = conversation.prompt(app.template(&model, deadline).await?)?;
    let text: String = prompt.into_iter().map(|segment| segment.text).collect();
    Ok(Json(json!({"prompt": text})))
}

async fn pieces(
    app: &App,
    ids: Vec<u32>,
    field: &'static str,
    deadline: Deadline,
) -> Result<Vec<Vec<u8>>, ApiError> {
    match ask(app, Query::Pieces(ids), field, deadline).await? {
        Reply::Pieces(pieces) => Ok(pieces),
        _ => Ok(Vec::new()),
    }
}

/// Sends a query about a field's content to the engine's thread.
async fn ask(app: &App, query: Query, field: &'static str, deadline: Deadline) -> Result<Reply, ApiError> {
    let blame = |error| Fields { prompt: field, ..Fields::CHAT }.blame(error);
    let answer = app.engine().query(query).map_err(blame)?;
    answered(deadline.within(answer).await?).map_err(blame)
}
