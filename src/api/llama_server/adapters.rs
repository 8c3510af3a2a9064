//! `GET` and `POST /lora-adapters`: the serving spokes in llama-server's form, and the defaults of
//! requests that choose none.

use axum::extract::State;
use axum::response::Json;
use serde_json::{Value, json};

use crate::api::app::App;
use crate::api::body::JsonBody;
use crate::api::error::ApiError;
use crate::api::spokes::defaults;

/// All serving spokes. The path of each file stays private; the name is sent instead.
pub(in crate::api) async fn adapters(State(app): State<App>) -> Json<Value> {
    let defaults = app.default_spokes();
    let serving = app.spokes().registry().serving();
    let mut all: Vec<_> = serving.names.iter().collect();
    all.sort_by_key(|(_, served)| served.id);
    let adapter = |(name, served): (&String, &crate::spokes::registry::Served)| {
        let scale = defaults.get(name).copied().unwrap_or(0.0);
        json!({"id": served.id, "path": name, "scale": scale, "generation": served.slot.generation})
    };
    Json(all.into_iter().map(adapter).collect())
}

/// Sets the scales for requests that choose no spoke. Spokes that the body doesn't name get 0.
/// Lasts until the next start.
pub(in crate::api) async fn set_adapters(
    State(app): State<App>,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    let set = defaults(&app, &body.0, &app.spokes().registry().serving())?;
    app.set_default_spokes(set);
    Ok(Json(json!({"success": true})))
}
