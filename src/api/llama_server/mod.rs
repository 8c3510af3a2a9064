//! What clients of llama-server read: health and timings.

pub(super) mod timings;

use axum::extract::State;
use axum::response::Json;
use serde_json::{Value, json};

use super::error::ApiError;
use super::state::App;
use crate::engine::{EngineError, EngineState};

/// `GET /health`: 200 when completions are answered at once, 503 while weights are read.
pub(super) async fn health(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    match &app.engine().health().borrow().state {
        EngineState::Ready(_) => Ok(Json(json!({"status": "ok"}))),
        EngineState::Loading => Err(ApiError::Loading),
        EngineState::Failed(reason) => Err(EngineError::Model(reason.clone()).into()),
        EngineState::Stopped => Err(EngineError::Stopped.into()),
    }
}
