//! What an engine is told of spokes: which to load and to free, and which a request runs with.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::adapter::{Generation, Kind};

/// What one request runs with beside the post: each generation once, in ascending order; empty is the post alone.
/// Any number of LoRAs, and at most one Felix spoke.
pub type SpokeSet = Vec<ScaledSpoke>;

/// A spoke and how strongly it acts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScaledSpoke {
    /// Which content.
    pub generation: Generation,
    /// What its part is multiplied with; 1 is as it was trained.
    pub scale: f32,
}

/// A change of what an engine holds. It counts for requests that are sent when it has been answered; a load and an unload of the
/// same content are not sent at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpokeChange {
    /// Load a spoke. One that is loaded stays as it is, also if it was about to be freed.
    Load(LoadSpoke),
    /// Free a spoke as soon as no request that was sent before runs with it, and answer then. One that isn't loaded is free.
    Unload(Generation),
}

/// A spoke to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSpoke {
    /// Its content's hash; what requests name.
    pub generation: Generation,
    /// How it acts.
    pub kind: Kind,
    /// A file in the form that the engine loads ([`Format::is_served`](crate::adapter::Format::is_served)), inspected, and
    /// not changed by anybody any more.
    pub path: PathBuf,
    /// For logs.
    pub name: String,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedSpoke {
    /// Bytes of memory that the spoke takes now, or that were freed.
    pub resident_bytes: u64,
}
