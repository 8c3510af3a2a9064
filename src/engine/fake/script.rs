//! What a fake engine is told to answer.

use std::time::Duration;

#[cfg(doc)]
use super::FakeEngine;
use crate::engine::EngineError;

/// What a [`FakeEngine`] answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Script {
    /// The text of the last plain segment of the prompt.
    Echo,
    /// This text, word by word.
    Text(String),
    /// This text, a pause before each word.
    Slow {
        /// The text.
        text: String,
        /// The pause.
        delay: Duration,
    },
    /// What it ran with: `post`, or the first digits of each spoke and its scale, as in `0123456789ab*1`; a pause before
    /// each.
    Spokes(Duration),
    /// This error, in the place of the first event.
    Fail(EngineError),
    /// These tokens; a budget, stop texts and a constraint change nothing about them.
    Tokens(Vec<ScriptedToken>),
    /// This text, then this error.
    FailAfter(String, EngineError),
    /// The prompt is accepted and nothing ever follows.
    Never,
}

/// A token of [`Script::Tokens`].
#[derive(Debug, Clone, PartialEq)]
pub struct ScriptedToken {
    /// Its text, which may be part of a character.
    pub bytes: Vec<u8>,
    /// How likely it was.
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
