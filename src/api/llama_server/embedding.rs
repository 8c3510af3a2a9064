//! `POST /embedding`: embeddings in llama-server's own form.

use axum::extract::State;
use axum::response::Json;
use serde_json::{Value, json};

use crate::api::app::App;
use crate::api::body::JsonBody;
use crate::api::error::ApiError;
use crate::api::openai::embeddings::vectors;
use crate::text::fields::short;

/// llama-server's number for the Euclidean norm: vectors of length 1.
const EUCLIDEAN: i64 = 2;

/// Answers with an array of vectors, each in an array of its own, because there is one vector for
/// all tokens of a text.
pub(in crate::api) async fn embed(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    if let Some(norm) = body.0.get("embd_normalize").filter(|norm| !norm.is_null())
        && norm.as_i64() != Some(EUCLIDEAN)
    {
        let message = format!("{} is not supported here: vectors have length 1 ({EUCLIDEAN})", short(norm));
        return Err(ApiError::field("embd_normalize", message));
    }
    let field = if body.0.get("content").is_some() { "content" } else { "input" };
    let found = vectors(&app, &body, field).await?;
    let entry = |(index, vector): (usize, &Vec<f32>)| json!({"index": index, "embedding": [vector]});
    Ok(Json(found.vectors.iter().enumerate().map(entry).collect()))
}
