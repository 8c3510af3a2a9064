//! Answers that must have a shape: JSON Schema and grammars through llguidance, forced tokens, and for JSON a valid end
//! within any budget.

mod closing_search;
mod gbnf;
mod grammars;
mod json_cursor;
mod repeats;
mod schema;
mod session;
mod size;
mod token_budget;

use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::TokenParser;
use toktrie::ApproximateTokEnv;

pub use self::grammars::{Grammars, Shape};
use self::json_cursor::Scanner;
pub use self::repeats::Repeat;
use self::repeats::{Shapes, Watch};
pub use self::session::{Session, Shared};
pub use self::size::STACK;
use super::vocabulary::fewest_tokens;

/// Longest message about a grammar, in characters.
const LONGEST_MESSAGE: usize = 1_000;

/// Tokens of a short way to the end that opens at most so many levels of brackets; with `watch`, one
/// on which no item repeats another of its list.
fn close(
    parser: &mut TokenParser,
    scanner: Scanner,
    levels: usize,
    watch: Option<Watch>,
) -> Option<Vec<u32>> {
    let bytes = closing_search::search(parser, scanner, levels, watch)?;
    fewest_tokens(parser.token_env.tok_trie(), &bytes)
}

/// A short value that validates against a schema, as compact JSON: what a fake engine answers.
///
/// # Errors
/// What of the schema can't be held to, or leads to no value, with its place.
pub fn instance(schema: &serde_json::Value) -> Result<String, String> {
    let instance = schema::instance(schema).map_err(|fault| fault.to_string())?;
    match Shapes::of(schema) {
        None => Ok(instance),
        Some(_) => Grammars::new(&ApproximateTokEnv::single_byte_env())
            .and_then(|grammars| grammars.shortest(schema))
            .map_err(|error| error.to_string()),
    }
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
mod exact_tests;
#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
