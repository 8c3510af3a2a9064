//! `GET /v1/models`: answers even before the weights are loaded, because mnemonic takes any 200 as
//! healthy.

use axum::extract::{Path, State};
use axum::response::Json;
use serde_json::{Value, json};

use crate::api::app::App;
use crate::api::error::ApiError;
use crate::spokes::registry::Served;

/// The post and its spokes.
pub(in crate::api) async fn list(State(app): State<App>) -> Json<Value> {
    let serving = app.spokes().registry().serving();
    let spokes = serving.names.iter().map(|(name, served)| spoke(&app, name, served));
    let data: Vec<Value> = std::iter::once(model(&app)).chain(spokes).collect();
    Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{id}`: the entry with this name, if there is one.
pub(in crate::api) async fn one(
    State(app): State<App>,
    Path(wanted): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if app.is_post(&wanted) {
        return Ok(Json(model(&app)));
    }
    let serving = app.spokes().registry().serving();
    let behind = |prefix: &str| wanted.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(':'));
    let name = behind(app.model_id()).or_else(|| behind("bespoke")).unwrap_or(&wanted);
    match serving.names.get(name) {
        Some(served) => Ok(Json(spoke(&app, name, served))),
        None => Err(ApiError::no_such_model(&wanted, &app)),
    }
}

/// The entry of a spoke.
fn spoke(app: &App, name: &str, served: &Served) -> Value {
    let facts = &served.slot.facts;
    json!({
        "id": name,
        "object": "model",
        "created": app.created(),
        "owned_by": "bespoke",
        "parent": app.model_id(),
        "meta": {
            "generation": served.slot.generation,
            "kind": facts.kind,
            "rank": facts.rank,
            "size": facts.bytes,
            "task": facts.task,
        },
    })
}

/// The post's entry, with its facts once they are known.
fn model(app: &App) -> Value {
    let mut model =
        json!({"id": app.model_id(), "object": "model", "created": app.created(), "owned_by": "bespoke"});
    for (field, names) in [("aliases", &app.options().model.aliases), ("tags", &app.options().model.tags)] {
        if !names.is_empty() {
            model[field] = json!(names);
        }
    }
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
