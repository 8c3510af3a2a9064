//! Endpoints of llama-server that its clients use.

pub(super) mod adapters;
pub(super) mod completion;
pub(super) mod embedding;
pub(super) mod props;

pub(super) mod tokens;

use axum::extract::State;
use axum::response::Json;
use serde_json::{Value, json};

use super::app::App;
use super::error::ApiError;

/// `GET /health`: 200 if completions are answered at once, 503 while weights load.
pub(super) async fn health(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    app.model_now().map(|_| Json(json!({"status": "ok"})))
}
