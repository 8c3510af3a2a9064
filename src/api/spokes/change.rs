//! `POST /v1/spokes/NAME:rollback`, `:enable`, `:disable`.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Json, Response};

use super::blame;
use super::list::Entry;
use crate::api::app::App;
use crate::api::error::ApiError;

/// Changes what a name serves. Answers when the change is done and on disk.
pub(in crate::api) async fn change(
    State(app): State<App>,
    Path(change): Path<String>,
) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let unknown = || ApiError::NoSuchPath(format!("/v1/spokes/{change}"));
    let (name, verb) = change.rsplit_once(':').ok_or_else(unknown)?;
    let spokes = app.spokes();
    let row = match verb {
        "rollback" => deadline.within(spokes.roll_back(name)).await?,
        "enable" => deadline.within(spokes.enable(name)).await?,
        "disable" => deadline.within(spokes.disable(name)).await?,
        _ => return Err(unknown()),
    };
    let row = row.map_err(blame("name"))?;
    // Use the current row, because the swap may have changed it since.
    let rows = spokes.registry().rows();
    let now =
        rows.iter().find(|now| now.name == row.name && now.generation == row.generation).unwrap_or(&row);
    Ok(Json(Entry::new(now, &spokes.registry().serving())).into_response())
}
