//! Tokens of a fake engine: a word with the whitespace after it, with an id derived from its
//! letters.

use super::FakeEngine;
use crate::engine::constraint::instance;
use crate::engine::{Constraint, EngineError, Prompt, TokenLikelihood, TokenReport};

/// The answer under a constraint: the scripted text if it is JSON, else a minimal instance.
pub(super) fn constrained(
    constraint: Option<&Constraint>,
    text: String,
    budget: u32,
) -> Result<String, EngineError> {
    let text = match constraint {
        Some(_) if serde_json::from_str::<serde_json::Value>(&text).is_ok() => return Ok(text),
        Some(Constraint::JsonObject) => "{}".to_owned(),
        Some(Constraint::JsonSchema(schema)) => instance(schema).map_err(EngineError::Schema)?,
        // A fake engine has no grammar, so it trusts the script to fit.
        None | Some(Constraint::Regex(_) | Constraint::Gbnf(_) | Constraint::Lark(_)) => return Ok(text),
    };
    let needed = words(&text).count() as u32;
    if needed > budget {
        return Err(EngineError::BudgetTooSmall { needed, given: budget });
    }
    Ok(text)
}

/// The text before the first stop text, and the index of that stop text.
pub(super) fn cut_at_stop(mut text: String, stop: &[String]) -> (String, Option<u32>) {
    let found = (0..).zip(stop).filter_map(|(index, stop)| Some((text.find(stop)?, index)));
    let Some((at, index)) = found.min() else { return (text, None) };
    text.truncate(at);
    (text, Some(index))
}

pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(char::is_whitespace)
}

/// A report that lists the token itself as the likeliest, and made-up others.
pub(super) fn reported(bytes: &[u8], probability: f32, forced: bool, top: u32) -> TokenReport {
    let likelihood = |bytes: &[u8], probability: f32| TokenLikelihood {
        id: hash(bytes) % 32_000,
        bytes: bytes.to_vec(),
        logprob: probability.ln(),
    };
    let others = (1..top)
        .map(|rank| likelihood(format!("other{rank} ").as_bytes(), probability / 2f32.powi(rank as i32)));
    let token = likelihood(bytes, probability);
    let top = std::iter::once(token.clone()).take(top as usize).chain(others).collect();
    TokenReport { token, forced, top }
}

pub(super) fn word_id(word: &str) -> u32 {
    hash(word.as_bytes()) % 32_000
}

/// One id per word.
pub(super) fn tokens(prompt: &Prompt) -> Vec<u32> {
    prompt
        .iter()
        .flat_map(|segment| {
            let ids = words(&segment.text).map(word_id);
            ids.chain(segment.ids.iter().copied())
        })
        .collect()
}

/// A vector that depends only on the words.
pub(super) fn embedding(prompt: &Prompt) -> Vec<f32> {
    let mut vector = vec![0.01_f32; FakeEngine::info().n_embd as usize];
    for token in tokens(prompt) {
        let width = vector.len();
        vector[token as usize % width] += 1.0;
    }
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / norm).collect()
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
