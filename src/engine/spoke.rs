//! Messages about spokes: which to load and to free, and which a request runs with.

use std::path::PathBuf;

use crate::adapter::{Generation, Kind};

/// The spokes of one request: each generation once, in ascending order. Any number of LoRAs and at
/// most one Felix spoke; empty for the post alone.
pub type SpokeSet = Vec<ScaledSpoke>;

/// A spoke and its scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaledSpoke {
    /// Generation of the spoke.
    pub generation: Generation,
    /// Factor for its contribution. 1 is as it was trained.
    pub scale: f32,
}

/// A change of the loaded spokes. It applies to requests that are sent after it was answered. A
/// load and an unload of the same generation must not be sent at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpokeChange {
    /// Load a spoke. If it is already loaded, it stays, and a pending unload is cancelled.
    Load(LoadSpoke),
    /// Free a spoke once no request that was sent earlier uses it, and answer then. If it isn't
    /// loaded, answer at once.
    Unload(Generation),
}

/// A spoke to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadSpoke {
    /// Hash of its content, which requests name.
    pub generation: Generation,
    /// How it acts.
    pub kind: Kind,
    /// An inspected file in the format that the engine loads
    /// ([`Format::is_served`](crate::adapter::Format::is_served)). It must not change any more.
    pub path: PathBuf,
    /// Name for logs.
    pub name: String,
}

/// The result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedSpoke {
    /// Bytes of memory that the spoke takes now, or that were freed.
    pub resident_bytes: u64,
}
