//! Spokes over HTTP: choosing them for a request, listing, events and changes.

mod change;
mod choose;
mod events;
mod kin;
mod list;
mod vllm;

pub(super) use change::change;
pub(super) use choose::{Chosen, Default, HEADER, SpokeChoice, defaults};
pub(super) use events::events;
pub(super) use kin::befriend;
pub(super) use list::list;
pub(super) use vllm::{load, unload};

use super::error::ApiError;
use crate::spokes::reconciler::SpokeError;

/// Converts errors of a command about this field of the request.
fn blame(field: &str) -> impl Fn(SpokeError) -> ApiError + '_ {
    move |trouble| match trouble {
        SpokeError::NoSuch(name) => ApiError::NoSuchSpoke(name),
        SpokeError::Conflict(_) | SpokeError::Gone(_) | SpokeError::Retired => {
            ApiError::SpokeConflict(trouble.to_string())
        }
        SpokeError::Refused(why) => ApiError::SpokeRefused(why),
        SpokeError::Postponed(why) => ApiError::SpokeWaits { name: None, why },
        SpokeError::TooLarge { .. } => ApiError::field(field, trouble.to_string()),
        SpokeError::Stopped => crate::engine::EngineError::Stopped.into(),
    }
}
