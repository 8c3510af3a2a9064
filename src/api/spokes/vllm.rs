//! `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`: vLLM's API to load a spoke from a
//! path of this machine.

use std::path::PathBuf;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::blame;
use crate::api::app::App;
use crate::api::body::JsonBody;
use crate::api::error::ApiError;
use crate::spokes::life::State as Life;
use crate::spokes::reconciler::SpokeError;

#[derive(Debug, Deserialize)]
struct AdapterFields {
    lora_name: String,
    lora_path: Option<String>,
    load_inplace: Option<bool>,
}

/// Loads a file, which passes the same checks as a dropped one. Answers when it serves.
pub(in crate::api) async fn load(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let AdapterFields { lora_name, lora_path, load_inplace } = body.parse()?;
    let path = lora_path.ok_or_else(|| ApiError::field("lora_path", "is missing"))?;
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(ApiError::field("lora_path", "expected an absolute path on the daemon's machine"));
    }
    let loaded = app.spokes().load(&lora_name, path, load_inplace.unwrap_or(false));
    let row = deadline.within(loaded).await?.map_err(blame("lora_path"))?;
    if row.state != Life::Serving {
        let why = row.state.reason().map_or("it changes nothing", |why| why.message.as_str());
        let trouble = format!("{lora_name:?} is {} and does not serve: {why}", row.state.name());
        return Err(blame("lora_path")(SpokeError::Conflict(trouble)));
    }
    Ok(said(format!("Success: LoRA adapter '{lora_name}' added successfully.")))
}

/// Stops serving a spoke. A name from the folder is disabled.
pub(in crate::api) async fn unload(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let AdapterFields { lora_name, .. } = body.parse()?;
    deadline.within(app.spokes().unload(&lora_name)).await?.map_err(blame("lora_name"))?;
    Ok(said(format!("Success: LoRA adapter '{lora_name}' removed successfully.")))
}

/// vLLM answers in plain text.
fn said(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}
