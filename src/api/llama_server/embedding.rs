//! `POST /embedding`: embeddings in llama-server's own form.

use axum::extract::State;
use axum::response::Json;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::app::App;
use crate::api::body::JsonBody;
use crate::api::error::ApiError;
use crate::api::openai::embeddings::EmbeddingRequest;
use crate::text::fields::{present, short, take};

/// llama-server's number for the Euclidean norm: vectors of length 1.
const EUCLIDEAN: i64 = 2;

/// Fields of this endpoint alone, as written.
#[derive(Debug, Deserialize)]
struct NativeFields {
    /// The texts, under llama-server's older name.
    #[serde(default, deserialize_with = "present")]
    content: Option<Value>,
    embd_normalize: Option<Value>,
}

/// Answers with an array of vectors, each in an array of its own, because there is one vector for
/// all tokens of a text.
pub(in crate::api) async fn embed(State(app): State<App>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let mut fields = body.fields()?;
    let NativeFields { content, embd_normalize } = take(&mut fields)?;
    if let Some(norm) = embd_normalize
        && norm.as_i64() != Some(EUCLIDEAN)
    {
        let message = format!("{} is not supported here: vectors have length 1 ({EUCLIDEAN})", short(&norm));
        return Err(ApiError::field("embd_normalize", message));
    }
    let request: EmbeddingRequest = take(&mut fields)?;
    let found = match content {
        Some(content) => request.of(content).vectors(&app, "content").await?,
        None => request.vectors(&app, "input").await?,
    };
    let entry = |(index, vector): (usize, &Vec<f32>)| json!({"index": index, "embedding": [vector]});
    Ok(Json(found.vectors.iter().enumerate().map(entry).collect()))
}
