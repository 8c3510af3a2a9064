//! How answers are kept from repeating themselves, and what is told of it: plain serialisable data.

use serde::{Deserialize, Serialize};

/// How an answer in JSON is kept from repeating itself. Numbers that go round in a loop are ended
/// in any case.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Guard {
    /// Lists whose items have to have different names.
    pub distinct: Vec<DistinctList>,
    /// Texts that go round in a loop are ended, and so are texts and lists that are longer than
    /// this, and an answer of more than twice as many tokens as its prompt; `None` leaves them
    /// alone.
    pub longest: Option<Longest>,
}

/// Bytes that texts and lists of an answer have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Longest {
    /// A text.
    pub text: usize,
    /// A list, with everything in it.
    pub list: usize,
}

/// A list whose items have to have different names. Case and white space around a name don't count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistinctList {
    /// The list, as a JSON pointer.
    pub path: String,
    /// Texts of an item that are its name together; none: the item is one itself.
    pub members: Vec<String>,
}

/// Where an answer was kept from repeating itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// The list, text or number, as a JSON pointer.
    pub path: String,
    /// Why.
    pub why: CloseReason,
}

/// What an answer was kept from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// An item that repeats one of its list: it was taken back.
    RepeatedItem,
    /// A text or number that said the same all the time: it was ended.
    Loop,
    /// A text or list much longer than what it is about: it was ended.
    TooLong,
}

impl CloseReason {
    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::RepeatedItem => "repeated_item",
            Self::Loop => "loop",
            Self::TooLong => "too_long",
        }
    }
}
