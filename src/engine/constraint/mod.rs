//! Answers that must have a shape: JSON Schema and grammars through llguidance, forced tokens, and for JSON a valid end
//! within any budget.

mod bound;
mod closing;
mod gbnf;
mod grammars;
mod numbers;
mod repeats;
mod scanner;
mod session;
mod shares;
mod size;

use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::TokenParser;

pub use self::grammars::{Grammars, Shape};
pub use self::repeats::Repeat;
use self::repeats::Watch;
use self::scanner::Scanner;
pub use self::session::{Session, Shared};
pub use self::size::STACK;
use super::vocabulary::fewest_tokens;

/// Longest message about a grammar, in characters.
const LONGEST_MESSAGE: usize = 1_000;

/// Tokens of a short way to the end; with `watch`, one on which no item repeats another of its
/// list.
fn close(parser: &mut TokenParser, scanner: Scanner, watch: Option<Watch>) -> Option<Vec<u32>> {
    let bytes = closing::search(parser, scanner, watch)?;
    fewest_tokens(parser.token_env.tok_trie(), &bytes)
}

/// Runs llguidance; a panic inside it becomes a message.
fn guarded<T>(run: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        // It may quote all that it was given.
        Ok(result) => result.map_err(|e| {
            e.to_string().replace("\n<non-verbose/>", "").chars().take(LONGEST_MESSAGE).collect()
        }),
        Err(_) => Err("llguidance panicked on it".to_owned()),
    }
}

#[cfg(test)]
mod tests;
