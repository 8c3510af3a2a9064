//! Constrained answers: JSON Schema and grammars through llguidance, forced tokens, and for JSON a
//! valid end within any token budget.

mod closing_search;
mod gbnf;
mod grammars;
#[cfg(feature = "test-support")]
mod instance;
mod json_cursor;
mod repeats;
mod schema;
mod session;
mod size;
mod token_budget;

use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::TokenParser;

pub use self::grammars::{CompiledConstraint, Grammars};
#[cfg(feature = "test-support")]
pub use self::instance::instance;
use self::json_cursor::Scanner;
pub use self::repeats::Repeat;
use self::repeats::Watch;
pub use self::session::Session;
pub use self::size::STACK;
use super::vocabulary::fewest_tokens;

/// Maximum length of a message about a grammar, in characters.
const LONGEST_MESSAGE: usize = 1_000;

/// Tokens of a short closing that opens at most `levels` levels of brackets. With `watch`, no item
/// repeats another of its list.
fn close(
    parser: &mut TokenParser,
    scanner: Scanner,
    levels: usize,
    watch: Option<Watch>,
) -> Option<Vec<u32>> {
    let bytes = closing_search::search(parser, scanner, levels, watch)?;
    fewest_tokens(parser.token_env.tok_trie(), &bytes)
}

/// Runs llguidance and turns a panic inside it into a message.
fn guarded<T>(run: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        // The message may quote the whole input, so limit its length.
        Ok(result) => result.map_err(|e| {
            e.to_string().replace("\n<non-verbose/>", "").chars().take(LONGEST_MESSAGE).collect()
        }),
        Err(_) => Err("llguidance panicked on it".to_owned()),
    }
}

#[cfg(test)]
mod exact_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
