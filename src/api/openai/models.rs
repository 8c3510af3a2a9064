//! `GET /v1/models`: answers at once, also before the weights are read; mnemonic takes any 200 for health.

use axum::extract::{Path, State};
use axum::response::Json;
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::state::App;

/// The one model there is.
pub(in crate::api) async fn list(State(app): State<App>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(&app)]}))
}

/// `GET /v1/models/{id}`: the same entry, if it has this name.
pub(in crate::api) async fn one(
    State(app): State<App>,
    Path(wanted): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if wanted == app.model_id() {
        return Ok(Json(model(&app)));
    }
    Err(ApiError::NoSuchModel { wanted, served: app.model_id().to_owned() })
}

/// Its entry, with its facts once they are known.
fn model(app: &App) -> Value {
    let mut model =
        json!({"id": app.model_id(), "object": "model", "created": app.created(), "owned_by": "bespoke"});
    if let Some(facts) = app.model() {
        model["meta"] = json!({
            "n_vocab": facts.n_vocab,
            "n_ctx": facts.n_ctx,
            "n_ctx_train": facts.n_ctx_train,
            "n_embd": facts.n_embd,
            "n_params": facts.parameters,
            "size": facts.bytes,
        });
    }
    model
}
