//! Answers that must have a shape: JSON Schema and grammars through llguidance, forced tokens, and for JSON a valid end
//! within any budget.

mod bound;
mod closing;
mod gbnf;
mod scanner;
mod shares;
mod size;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use toktrie::{InferenceCapabilities, SimpleVob, TokEnv};

use self::scanner::Scanner;
pub use self::shares::Due;
use self::shares::Shares;
pub use self::size::STACK;
use super::vocabulary::fewest_tokens;
use super::{Constraint, EngineError};

/// Longest message about a grammar, in characters.
const LONGEST_MESSAGE: usize = 1_000;
/// Compiled grammars that are kept, and about how much memory they may take together.
const KEPT: usize = 32;
const KEPT_BYTES: usize = 512 << 20;
/// States of a grammar's lexer. Answers share them and add to them: a grammar is renewed when half of them are used, so that
/// each answer finds as many as any could need.
const LEXER_STATES: usize = 100_000;
/// Largest number, where the schema has no limit: a double holds all integers up to it.
const LARGEST: f64 = 1e15;

/// Compiles constraints for one vocabulary and keeps what it has compiled.
pub struct Grammars {
    factory: ParserFactory,
    kept: HashMap<[u8; 32], Kept>,
    clock: u64,
}

struct Kept {
    grammar: Result<Grammar, EngineError>,
    used: u64,
}

#[derive(Clone)]
struct Grammar {
    parser: TokenParser,
    /// A way to the end from the beginning; `None` for grammars that aren't JSON, which are not closed.
    closing: Option<Vec<u32>>,
    bound: usize,
}

impl Grammars {
    /// For a vocabulary.
    ///
    /// # Errors
    /// llguidance can't work with it.
    pub fn new(tokens: &TokEnv) -> Result<Self, EngineError> {
        let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        let mut factory = ParserFactory::new(tokens, capabilities, &SlicedBiasComputer::json_slices())
            .map_err(|e| EngineError::Internal(format!("llguidance: {e}")))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            // A request must not hold up all others for long, nor fill the memory: roughly 0.1 s and 100 MB.
            max_grammar_size: 100_000,
            max_lexer_states: 50_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory, kept: HashMap::new(), clock: 0 })
    }

    /// Begins an answer.
    ///
    /// # Errors
    /// [`EngineError::Schema`]: llguidance does not take the schema, it is too large, or no instance of it was found.
    pub fn begin(&mut self, constraint: &Constraint) -> Result<Session, EngineError> {
        let text = match constraint {
            Constraint::JsonSchema(schema) => schema.to_string(),
            Constraint::JsonObject => String::new(),
            Constraint::Regex(text) | Constraint::Gbnf(text) | Constraint::Lark(text) => text.clone(),
        };
        size::check_bytes(&text)?;
        let kind = std::mem::discriminant(constraint);
        let key: [u8; 32] = Sha256::digest(format!("{kind:?}{text}")).into();
        self.clock += 1;
        if !self.kept.contains_key(&key) {
            if self.kept.len() >= KEPT
                && let Some(oldest) = self.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key)
            {
                self.kept.remove(&oldest);
            }
            let grammar = match constraint {
                Constraint::JsonSchema(schema) => compile(&self.factory, schema.clone()),
                Constraint::JsonObject => compile(&self.factory, any_object()),
                Constraint::Regex(text) => grammar(&self.factory, TopLevelGrammar::from_regex(text)),
                Constraint::Gbnf(text) => gbnf::to_lark(text)
                    .map_err(EngineError::Schema)
                    .and_then(|lark| grammar(&self.factory, TopLevelGrammar::from_lark(lark))),
                Constraint::Lark(text) => size::check_lark(text)
                    .and_then(|()| grammar(&self.factory, TopLevelGrammar::from_lark(text.clone()))),
            };
            self.kept.insert(key, Kept { grammar, used: 0 });
        }
        let kept = self.kept.get_mut(&key).expect("it was put there if it was missing");
        kept.used = self.clock;
        let Grammar { parser, closing, bound } = kept.grammar.clone()?;
        let closes = closing.is_some();
        let shares = Shares::new(usize::MAX);
        Ok(Session { key, parser, scanner: Scanner::START, shares, is_cut: false, bound, closes, closing })
    }

    /// Drops a grammar whose parser failed: its shared lexer may be full or broken.
    pub fn forget(&mut self, session: &Session) {
        self.kept.remove(&session.key);
    }
}

/// A grammar that need not be JSON.
fn grammar(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Grammar, EngineError> {
    let parser = parser(factory, grammar)?;
    Ok(Grammar { parser, closing: None, bound: usize::MAX })
}

fn parser(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<TokenParser, EngineError> {
    guarded(|| {
        let mut parser = factory.create_parser(grammar)?;
        parser.start_without_prompt();
        Ok(parser)
    })
    .map_err(EngineError::Schema)
}

fn compile(factory: &ParserFactory, mut schema: Value) -> Result<Grammar, EngineError> {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    size::check_schema(&schema)?;
    let bound = bound::closing_bound(&schema).unwrap_or(usize::MAX);
    let Value::Object(keys) = &mut schema else {
        return Err(EngineError::Schema(format!("a schema is an object, found {schema}")));
    };
    keys.values_mut().for_each(limit_numbers);
    limit_number(keys);
    // No free white space; no escapes of control characters but line end, carriage return and tab.
    keys.insert(
        "x-guidance".to_owned(),
        json!({"whitespace_flexible": false, "item_separator": ",", "key_separator": ":", "json_allowed_escapes": "nrt\\\""}),
    );
    let mut parser = parser(factory, TopLevelGrammar::from_json_schema(schema))?;
    let closing = guarded(|| Ok(close(&mut parser, Scanner::START)))
        .map_err(EngineError::Schema)?
        .ok_or_else(|| EngineError::Schema("no value that validates against it was found".to_owned()))?;
    Ok(Grammar { parser, closing: Some(closing), bound })
}

/// Any object, its numbers within limits.
fn any_object() -> Value {
    json!({
        "type": "object",
        "additionalProperties": {"$ref": "#/$defs/any"},
        "$defs": {"any": {"anyOf": [
            {"type": "string"},
            {"type": ["number", "boolean", "null"]},
            {"type": "array", "items": {"$ref": "#/$defs/any"}},
            {"type": "object", "additionalProperties": {"$ref": "#/$defs/any"}},
        ]}},
    })
}

/// Numbers without bounds get some, in all schemas within `value`: JSON allows `1e999999`, and most readers fail on it.
fn limit_numbers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(limit_numbers),
        Value::Object(keys) => {
            for (_, value) in keys
                .iter_mut()
                .filter(|(key, _)| !matches!(key.as_str(), "const" | "enum" | "default" | "examples"))
            {
                limit_numbers(value);
            }
            limit_number(keys);
        }
        _ => {}
    }
}

fn limit_number(schema: &mut Map<String, Value>) {
    let is_number = |kind: &Value| matches!(kind.as_str(), Some("number" | "integer"));
    let numeric = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(is_number),
        Some(kind) => is_number(kind),
        None => false,
    };
    let bound = |keys: [&str; 2]| keys.iter().find_map(|key| schema.get(*key)).map(Value::as_f64);
    let (low, high) = (bound(["minimum", "exclusiveMinimum"]), bound(["maximum", "exclusiveMaximum"]));
    if numeric && low.is_none() && high.is_none_or(|high| high.is_some_and(|high| high > -LARGEST)) {
        schema.insert("minimum".to_owned(), json!(-LARGEST));
    }
    if numeric && high.is_none() && low.is_none_or(|low| low.is_some_and(|low| low < LARGEST)) {
        schema.insert("maximum".to_owned(), json!(LARGEST));
    }
}

/// Tokens of a short way to the end.
fn close(parser: &mut TokenParser, scanner: Scanner) -> Option<Vec<u32>> {
    let bytes = closing::search(parser, scanner)?;
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

/// One constrained answer.
pub struct Session {
    key: [u8; 32],
    parser: TokenParser,
    scanner: Scanner,
    shares: Shares,
    /// Whether a value was ended that would have gone on, so that others get their share.
    is_cut: bool,
    bound: usize,
    closes: bool,
    /// A way to the end from here, if it was looked for.
    closing: Option<Vec<u32>>,
}

impl Session {
    /// The answer may have so many tokens.
    pub fn set_budget(&mut self, budget: usize) {
        self.shares = Shares::new(budget);
    }

    /// What must come next, if it may, so that a string or array that goes on and on leaves something to what has to follow.
    ///
    /// # Errors
    /// As [`Session::closing`].
    pub fn due(&mut self) -> Result<Option<Due>, EngineError> {
        if !self.closes {
            return Ok(None);
        }
        let mut shares = std::mem::replace(&mut self.shares, Shares::new(0));
        let due = shares.due(self.scanner, || {
            let tokens = self.closing()?.to_vec();
            let trie = self.parser.token_env.tok_trie();
            Ok(tokens.into_iter().flat_map(|token| trie.token(token).to_vec()).collect())
        });
        self.shares = shares;
        due
    }

    /// A value is ended that the model would have gone on with.
    pub fn set_cut(&mut self) {
        self.is_cut = true;
    }

    /// Whether a value was ended that would have gone on.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Whether the answer is closed when tokens run out; if not, `bound` and `closing` must not be asked.
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// While at least this many tokens are left, the answer can be closed without looking how.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Tokens that close the answer from here.
    ///
    /// # Errors
    /// None was found.
    pub fn closing(&mut self) -> Result<&[u32], EngineError> {
        if self.closing.is_none() {
            let (parser, scanner) = (&mut self.parser, self.scanner);
            let found = guarded(|| Ok(close(parser, scanner))).map_err(EngineError::Schema)?;
            let missing = || EngineError::Schema("no short way to close the answer was found".to_owned());
            self.closing = Some(found.ok_or_else(missing)?);
        }
        Ok(self.closing.as_deref().expect("it was filled above"))
    }

    /// Tokens that the schema dictates from here; they are taken.
    ///
    /// # Errors
    /// llguidance gives up.
    pub fn forced(&mut self) -> Result<Vec<u32>, EngineError> {
        if self.ended()? {
            return Ok(Vec::new());
        }
        let tokens = guarded(|| Ok(self.parser.compute_ff_tokens())).map_err(EngineError::Schema)?;
        for &token in &tokens {
            self.accept(token)?;
        }
        Ok(tokens)
    }

    /// Tokens that may come next; an end-of-turn token is among them where the answer may end.
    ///
    /// # Errors
    /// llguidance gives up.
    pub fn mask(&mut self) -> Result<SimpleVob, EngineError> {
        guarded(|| self.parser.compute_mask()).map_err(EngineError::Schema)
    }

    /// Takes a token that the mask admits.
    ///
    /// # Errors
    /// llguidance gives up.
    pub fn accept(&mut self, token: u32) -> Result<(), EngineError> {
        guarded(|| self.parser.consume_token(token)).map_err(EngineError::Schema)?;
        self.shares.accept(&mut self.scanner, self.parser.token_env.tok_trie().token(token));
        self.closing = None;
        Ok(())
    }

    /// Whether nothing can follow.
    ///
    /// # Errors
    /// llguidance gives up.
    pub fn ended(&mut self) -> Result<bool, EngineError> {
        if self.parser.stopped() {
            return Ok(true);
        }
        self.ask(TokenParser::check_stop)
    }
}

#[cfg(test)]
mod tests;
