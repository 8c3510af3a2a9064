//! `GET /v1/spokes`: every file of the folder and whatever else serves, with its state and why.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::Json;
use serde_json::{Value, json};

use crate::api::state::App;
use crate::spoke::registry::{Row, Serving};

/// All of them, by name.
pub(in crate::api) async fn list(State(app): State<App>) -> Json<Value> {
    let registry = app.spokes().registry();
    let serving = registry.serving();
    let rows = registry.rows();
    let data: Vec<Value> = rows.iter().map(|row| entry(row, &serving)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// One of them.
pub(super) fn entry(row: &Row, serving: &Serving) -> Value {
    let serves = serving
        .names
        .get(&row.name)
        .filter(|served| Some(served.slot.generation) == row.generation && row.slot.is_some());
    let (uses, last_used) = row.slot.as_ref().map_or((0, None), |slot| slot.uses());
    let mut entry = json!({
        "name": row.name,
        "generation": row.generation,
        "state": row.state.name(),
        "kind": row.facts.as_ref().map(|facts| facts.kind),
        "rank": row.facts.as_ref().map(|facts| facts.rank),
        "bytes": row.facts.as_ref().map(|facts| facts.bytes),
        "uses": uses,
        "last_used": last_used.map(seconds),
        "file": row.entry,
        "since": seconds(row.since),
    });
    if let Some(why) = row.state.reason() {
        entry["reason"] = json!({"code": why.code, "message": why.message, "hint": why.hint});
    }
    if let Some(served) = serves {
        entry["id"] = served.id.into();
        entry["resident_bytes"] = json!(served.slot.resident().map(|resident| resident.bytes));
        entry["before"] = json!(served.before);
    }
    if let Some(task) = row.facts.as_ref().and_then(|facts| facts.task.as_ref()) {
        entry["task"] = task.as_str().into();
    }
    entry
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
