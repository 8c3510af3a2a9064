//! Scripts that determine the answers of a fake engine.

use std::time::Duration;

#[cfg(doc)]
use super::FakeEngine;
use crate::engine::EngineError;

/// The answer of a [`FakeEngine`].
#[derive(Debug, Clone, PartialEq)]
pub enum Script {
    /// The text of the last plain segment of the prompt.
    Echo,
    /// This text, word by word.
    Text(String),
    /// This text, with a pause before each word.
    Slow {
        /// The text.
        text: String,
        /// The pause.
        delay: Duration,
    },
    /// The spokes of the request: `post`, or the first digits of each generation and its scale, as
    /// in `0123456789ab*1`. With a pause before each.
    Spokes(Duration),
    /// This error as the first event.
    Fail(EngineError),
    /// These tokens, regardless of budget, stop texts and constraint.
    Tokens(Vec<ScriptedToken>),
    /// This text, then this error.
    FailAfter(String, EngineError),
    /// The prompt is accepted, and nothing follows.
    Never,
}

/// A token of [`Script::Tokens`].
#[derive(Debug, Clone, PartialEq)]
pub struct ScriptedToken {
    /// Its bytes, possibly part of a character.
    pub bytes: Vec<u8>,
    /// Probability of the token.
    pub probability: f32,
    /// Whether the constraint dictated it.
    pub forced: bool,
}

impl ScriptedToken {
    /// A token that was chosen.
    pub fn chosen(bytes: impl Into<Vec<u8>>, probability: f32) -> Self {
        Self { bytes: bytes.into(), probability, forced: false }
    }
    /// A token that was dictated.
    pub fn forced(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), probability: 1.0, forced: true }
    }
}
