//! `POST /v1/spokes/trained-on`: accepts spokes trained on a folder, whose tensors were compared
//! with the post's.

use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};

use super::blame;
use crate::api::app::App;
use crate::api::body::JsonBody;
use crate::api::error::ApiError;
use crate::spokes::store::Kinship;

/// Records the kinship. Answers when it is on disk.
pub(in crate::api) async fn befriend(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let kinship: Kinship = body.parse()?;
    deadline.within(app.spokes().befriend(kinship.clone())).await?.map_err(blame("post_sha256"))?;
    Ok(Json(kinship).into_response())
}
