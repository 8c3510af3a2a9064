//! A raw event: what happened on a person's machine, before anybody has made sense of it.

use serde::{Deserialize, Serialize};

/// Where events come from, in the daemon's words.
pub const SOURCES: [&str; 6] = ["mcp", "terminal", "filesystem", "git", "clipboard", "ingest"];

/// Types that the generator uses. The daemon's list is open, so nothing refuses another word.
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
    /// What sort of event it is: `general`, `decision`, `error`, ...
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
