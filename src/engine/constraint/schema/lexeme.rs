//! Lexemes of an answer: regular expressions for which a matching text is known.

use std::collections::{HashMap, VecDeque};

use llguidance::derivre::{Regex, RegexAst, RegexBuilder, StateID};

/// Maximum bytes of a value that a schema may force. A longer one could not be closed when tokens
/// run out.
pub const LONGEST: usize = 32_000;
/// Maximum steps to decide whether anything matches an expression.
const FUEL: u64 = 300_000;
/// Maximum states that are searched for a shortest match.
const STATES: usize = 20_000;

/// A terminal of the grammar.
#[derive(Clone)]
pub struct Lexeme {
    pub ast: RegexAst,
    /// Maximum bytes to end the lexeme from any point inside; `None` if unknown.
    pub closing: Option<usize>,
    /// A short text that matches.
    pub sample: String,
    /// Minimum bytes of a match.
    pub bytes: usize,
}

impl Lexeme {
    /// A lexeme that matches only this text.
    pub fn literal(text: String) -> Self {
        Self::known(RegexAst::Literal(text.clone()), Some(text.len()), text)
    }

    /// A lexeme with a text that is known to match.
    pub fn known(ast: RegexAst, closing: Option<usize>, sample: String) -> Self {
        Self { ast, closing, bytes: sample.len(), sample }
    }

    /// A lexeme that is too long to be written: it takes at least this many bytes.
    pub fn endless(bytes: usize) -> Self {
        Self { ast: RegexAst::NoMatch, closing: None, sample: String::new(), bytes }
    }

    /// A lexeme for an expression; `None` if nothing matches it.
    ///
    /// # Errors
    /// The expression can't be compiled, or it is too complex to decide whether anything matches.
    pub fn checked(ast: RegexAst, closing: Option<usize>) -> Result<Option<Self>, String> {
        let Some(mut regex) = compiled(&ast)? else { return Ok(None) };
        let sample = shortest(&mut regex)
            .ok_or("nothing that matches was found within a reasonable number of steps")?;
        Ok(Some(Self::known(ast, closing, sample)))
    }
}

/// The compiled expression; `None` if nothing matches it.
pub fn compiled(ast: &RegexAst) -> Result<Option<Regex>, String> {
    let mut builder = RegexBuilder::new();
    let expression = builder.mk(ast).map_err(|error| one_line(&error.to_string()))?;
    let unclear = |_| "it is too complex to tell whether anything matches it".to_owned();
    let mut regex = builder.into_regex_limited(expression, FUEL).map_err(unclear)?;
    Ok((!regex.always_empty()).then_some(regex))
}

/// regex-syntax formats its messages over several lines.
fn one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A shortest text that matches, by breadth-first search. Characters that read well are tried
/// first.
fn shortest(regex: &mut Regex) -> Option<String> {
    let mut from: HashMap<StateID, (StateID, u8)> = HashMap::new();
    let first = regex.initial_state();
    let mut queue = VecDeque::from([first]);
    let plain = b"0123456789xabcdefghijklmnopqrstuvwyzABCDEFGHIJKLMNOPQRSTUVWXYZ\"";
    let bytes: Vec<u8> =
        plain.iter().copied().chain((0..=255).filter(|byte| !plain.contains(byte))).collect();
    while let Some(state) = queue.pop_front() {
        if regex.is_accepting(state) {
            let (mut text, mut at) = (Vec::new(), state);
            while at != first {
                let (before, byte) = from[&at];
                text.push(byte);
                at = before;
            }
            text.reverse();
            return String::from_utf8(text).ok();
        }
        if from.len() > STATES {
            return None;
        }
        for &byte in &bytes {
            let next = regex.transition(state, byte);
            if !next.is_dead() && next != first && !from.contains_key(&next) {
                from.insert(next, (state, byte));
                queue.push_back(next);
            }
        }
    }
    None
}
