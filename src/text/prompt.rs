//! A prompt in pieces, as a template makes it and the engine reads it.

use serde::{Deserialize, Serialize};

/// A prompt as pieces: in a `markup` piece the text of a control token (`<|user|>`) is that token; elsewhere it is only text.
/// This is what keeps a message's content from forging the conversation around it.
pub type Prompt = Vec<Segment>;

/// One piece of a [`Prompt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether control-token text in it means control tokens.
    pub markup: bool,
    /// Tokens behind the text, for callers who have tokenised themselves.
    #[serde(default)]
    pub ids: Vec<u32>,
}

impl Segment {
    /// Text from the template.
    pub fn markup(text: impl Into<String>) -> Self {
        Self { text: text.into(), markup: true, ids: Vec::new() }
    }
    /// Text from a person.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), markup: false, ids: Vec::new() }
    }
    /// Tokens as they are.
    pub fn ids(ids: Vec<u32>) -> Self {
        Self { text: String::new(), markup: false, ids }
    }
}
