//! `GET /v1/spokes`: every file of the folder and every serving spoke, with state and reason.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use serde::Serialize;

use crate::adapter::{Generation, Kind};
use crate::api::app::App;
use crate::spokes::life::Reason;
use crate::spokes::registry::{Serving, SpokeRow};

/// All spokes, sorted by name.
pub(in crate::api) async fn list(State(app): State<App>) -> Response {
    let registry = app.spokes().registry();
    let serving = registry.serving();
    let rows = registry.rows();
    let data = rows.iter().map(|row| Entry::new(row, &serving)).collect();
    let unwritten = registry.unwritten();
    let state_error = unwritten.as_ref().map(ReasonBody::of);
    Json(List { object: "list", data, state_error }).into_response()
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry<'a>>,
    /// Why changes can't be written to the database, if so. Nothing progresses then.
    #[serde(skip_serializing_if = "Option::is_none")]
    state_error: Option<ReasonBody<'a>>,
}

/// One spoke. Serialised directly, so that a folder of ten thousand files doesn't become ten
/// thousand JSON trees first.
#[derive(Serialize)]
pub(super) struct Entry<'a> {
    name: &'a str,
    generation: Option<Generation>,
    state: &'static str,
    kind: Option<Kind>,
    rank: Option<u64>,
    bytes: Option<u64>,
    uses: u64,
    last_used: Option<u64>,
    file: Option<&'a str>,
    since: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<ReasonBody<'a>>,
    /// When a waiting spoke is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<u64>,
    #[serde(flatten)]
    serves: Option<Serves<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a str>,
}

/// The reason for its state. The `hint` member is always present.
#[derive(Serialize)]
struct ReasonBody<'a> {
    code: &'a str,
    message: &'a str,
    hint: Option<&'a str>,
}

impl<'a> ReasonBody<'a> {
    fn of(why: &'a Reason) -> Self {
        Self { code: &why.code, message: &why.message, hint: why.hint.as_deref() }
    }
}

/// Facts about a serving spoke.
#[derive(Serialize)]
struct Serves<'a> {
    id: i64,
    resident_bytes: Option<u64>,
    before: &'a [Generation],
}

impl<'a> Entry<'a> {
    pub(super) fn new(row: &'a SpokeRow, serving: &'a Serving) -> Self {
        let serves = serving.names.get(&row.name);
        let serves = serves
            .filter(|served| Some(served.slot.generation) == row.generation && row.slot.is_some())
            .map(|served| Serves {
                id: served.id,
                resident_bytes: served.slot.resident().map(|resident| resident.bytes),
                before: &served.before,
            });
        let (uses, last_used) = row.slot.as_ref().map_or((0, None), |slot| slot.uses());
        let facts = row.facts.as_ref();
        Self {
            name: &row.name,
            generation: row.generation,
            state: row.state.name(),
            kind: facts.map(|facts| facts.kind),
            rank: facts.map(|facts| facts.rank),
            bytes: facts.map(|facts| facts.bytes),
            uses,
            last_used: last_used.map(seconds),
            file: row.entry.as_deref(),
            since: seconds(row.since),
            reason: row.state.reason().map(ReasonBody::of),
            retry_at: row.retry_at.map(seconds),
            serves,
            task: facts.and_then(|facts| facts.task.as_deref()),
        }
    }
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
