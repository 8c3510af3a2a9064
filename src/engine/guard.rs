//! Settings that keep answers from repeating themselves, and reports of what they did.

use serde::Serialize;

/// How a JSON answer is kept from repeating itself. Numbers that loop are ended even without a
/// guard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guard {
    /// Lists whose items must have different names.
    pub distinct: Vec<DistinctList>,
    /// Ends texts that loop, texts and lists longer than these limits, and answers with more than
    /// about twice as many tokens as the prompt. `None` disables all of these checks.
    pub longest: Option<Longest>,
}

/// Maximum sizes, in bytes, of the texts and lists of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Longest {
    /// Of a text.
    pub text: usize,
    /// Of a list, including everything in it.
    pub list: usize,
}

/// A list whose items must have different names. Case and whitespace around a name are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DistinctList {
    /// The list's JSON pointer.
    pub path: String,
    /// Members of an item whose texts together form its name. If empty, the item itself is the
    /// name.
    pub members: Vec<String>,
}

/// Where an answer was kept from repeating itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Closed {
    /// JSON pointer of the list, text or number.
    pub path: String,
    /// Why it was closed.
    pub why: CloseReason,
}

/// The kind of repetition that was prevented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// An item repeats another item of its list. It was removed.
    RepeatedItem,
    /// A text or number repeats the same content over and over. It was ended.
    Loop,
    /// A text or list is much longer than its source. It was ended.
    TooLong,
}

impl CloseReason {
    /// The name used in answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::RepeatedItem => "repeated_item",
            Self::Loop => "loop",
            Self::TooLong => "too_long",
        }
    }
}
