//! `GET /props` and `/slots`: properties and activity of the daemon, for dashboards and scripts.

use axum::extract::State;
use axum::http::Uri;
use axum::response::Json;
use serde_json::{Value, json};

use crate::api::app::App;
use crate::api::error::ApiError;
use crate::api::request::REPEAT_LAST;
use crate::engine::{LaneState, Query, Reply};

/// Facts of the model, and the default settings of a request. The path of the model file stays
/// private; its name is sent instead.
pub(in crate::api) async fn props(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let deadline = app.deadline();
    let model = app.model_now()?;
    let defaults = app.sampling();
    let params = json!({
        "n_predict": -1,
        "seed": defaults.seed.map_or(Value::from(-1), Value::from),
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repeat_penalty": 1.0,
        "repeat_last_n": REPEAT_LAST,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "ignore_eos": false,
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
    });
    let lanes = lanes(&app).await?;
    // Clients need not learn where on this machine it is.
    let file = app.options().model.path.file_name().unwrap_or_default();
    Ok(Json(json!({
        "default_generation_settings": {
            "id": 0, "id_task": -1, "n_ctx": model.n_ctx, "speculative": true, "is_processing": false, "params": params,
        },
        "total_slots": lanes.len(),
        "model_alias": app.model_id(),
        "model_path": file.to_string_lossy(),
        // Weights stay in memory between requests.
        "is_sleeping": false,
        "modalities": {"vision": false, "audio": false},
        "chat_template": app.template(&model, deadline).await?.source(),
        "bos_token": model.bos_token,
        "eos_token": model.eos_token,
        "build_info": concat!("bespoke-", env!("CARGO_PKG_VERSION")),
        "computing": model.computing,
    })))
}

/// Activity of each lane, without the texts of prompts and answers, which are private. With
/// `?fail_on_no_slot=1`, answers 503 if all lanes are busy.
pub(in crate::api) async fn slots(State(app): State<App>, uri: Uri) -> Result<Json<Value>, ApiError> {
    if !app.options().server.slots {
        return Err(ApiError::Disabled { path: "/slots", setting: "server.slots" });
    }
    let model = app.model_now()?;
    let lanes = lanes(&app).await?;
    let strict = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "fail_on_no_slot=1"));
    if strict && lanes.iter().all(|lane| lane.request.is_some()) {
        return Err(ApiError::NoFreeSlot);
    }
    let slot = |lane: &LaneState| {
        json!({
            "id": lane.lane,
            "id_task": lane.request.as_ref().map_or(Value::from(-1), |_| lane.task.into()),
            "request": lane.request,
            "n_ctx": model.n_ctx,
            "speculative": true,
            "is_processing": lane.request.is_some(),
            "n_prompt_tokens": lane.prompt_tokens,
            "n_prompt_tokens_cache": lane.cached_tokens,
            "next_token": [{
                "has_next_token": lane.request.is_some(),
                "n_decoded": lane.completion_tokens,
                "n_remain": -1,
            }],
        })
    };
    Ok(Json(lanes.iter().map(slot).collect()))
}

async fn lanes(app: &App) -> Result<Vec<LaneState>, ApiError> {
    match app.query(Query::Lanes, app.deadline()).await? {
        Reply::Lanes(lanes) => Ok(lanes),
        _ => Ok(Vec::new()),
    }
}
