//! A raw event: something that happened on a user's machine, before it is encoded.

use serde::{Deserialize, Serialize};

/// Sources of events, as the client names them.
pub const SOURCES: [&str; 6] = ["mcp", "terminal", "filesystem", "git", "clipboard", "ingest"];

/// Types that the generator uses. The list is open: any other word is accepted.
pub const TYPES: [&str; 12] = [
    "general",
    "decision",
    "error",
    "insight",
    "commit",
    "change",
    "note",
    "config",
    "log",
    "meeting",
    "benchmark",
    "question",
];

/// A raw event, as it arrives for encoding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// One of [`SOURCES`], or another lower-case word.
    pub source: String,
    /// The type of event: `general`, `decision`, `error`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of the event.
    pub content: String,
}

impl Event {
    /// An event of these three parts.
    pub fn new(source: impl Into<String>, kind: impl Into<String>, content: impl Into<String>) -> Self {
        Self { source: source.into(), kind: kind.into(), content: content.into() }
    }
}
