//! `GET /v1/models`: answers at once, also before the weights are read; mnemonic takes any 200 for health.

use axum::extract::State;
use axum::response::Json;
use serde_json::{Value, json};

use crate::api::state::App;

/// The one model there is, with its facts once they are known.
pub(in crate::api) async fn list(State(app): State<App>) -> Json<Value> {
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
    Json(json!({"object": "list", "data": [model]}))
}
