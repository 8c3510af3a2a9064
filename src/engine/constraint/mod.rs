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
use std::rc::Rc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use toktrie::{InferenceCapabilities, SimpleVob, TokEnv};

use self::scanner::Scanner;
use self::shares::{Due, Shares};
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
    /// States of a lexer at which its grammar is renewed.
    used_up: usize,
    /// Bytes of all of them.
    limit: usize,
}

struct Kept {
    grammar: Result<Grammar, EngineError>,
    used: u64,
}

#[derive(Clone)]
struct Grammar {
    parser: TokenParser,
    /// As it was compiled: its lexer knows nothing of any answer.
    fresh: Rc<TokenParser>,
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
        Self::with_states(tokens, LEXER_STATES)
    }

    fn with_states(tokens: &TokEnv, states: usize) -> Result<Self, EngineError> {
        let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        let mut factory = ParserFactory::new(tokens, capabilities, &SlicedBiasComputer::json_slices())
            .map_err(|e| EngineError::Internal(format!("llguidance: {e}")))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            // A request must not hold up all others for long, nor fill the memory: roughly 0.1 s and 100 MB.
            max_grammar_size: 100_000,
            max_lexer_states: states,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory, kept: HashMap::new(), clock: 0, used_up: states / 2, limit: KEPT_BYTES })
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
            self.make_room();
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
        if let Ok(grammar) = &mut kept.grammar
            && grammar.parser.parser.lexer_stats().num_states > self.used_up
        {
            grammar.parser = grammar.fresh.deep_clone();
        }
        let Grammar { parser, fresh, closing, bound } = kept.grammar.clone()?;
        let closes = closing.is_some();
        let shares = Shares::new(usize::MAX);
        let taken = Vec::new();
        Ok(Session {
            key,
            parser,
            fresh,
            taken,
            scanner: Scanner::START,
            shares,
            is_cut: false,
            bound,
            closes,
            closing,
        })
    }

    /// Lets the grammars go that were not used for longest, as many as are too many.
    fn make_room(&mut self) {
        let bytes = |kept: &Kept| kept.grammar.as_ref().map_or(0, Grammar::bytes);
        let mut all: usize = self.kept.values().map(bytes).sum();
        while (self.kept.len() >= KEPT || all > self.limit)
            && let Some(oldest) = self.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key)
        {
            all -= self.kept.remove(&oldest).as_ref().map_or(0, bytes);
        }
    }

    /// Drops a grammar whose parser failed: its shared lexer may be full or broken.
    pub fn forget(&mut self, session: &Session) {
        self.kept.remove(&session.key);
    }
}

impl Grammar {
    fn new(parser: TokenParser, closing: Option<Vec<u32>>, bound: usize) -> Self {
        Self { fresh: Rc::new(parser.deep_clone()), parser, closing, bound }
    }

    /// Memory that it takes, about.
    fn bytes(&self) -> usize {
        self.parser.parser.lexer_stats().num_bytes + self.fresh.parser.lexer_stats().num_bytes
    }
}

/// A grammar that need not be JSON.
fn grammar(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Grammar, EngineError> {
    Ok(Grammar::new(parser(factory, grammar)?, None, usize::MAX))
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
    Ok(Grammar::new(parser, Some(closing), bound))
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
    fresh: Rc<TokenParser>,
    /// All tokens so far.
    taken: Vec<u32>,
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

    /// Asks the parser. Other answers may have used up the lexer that it shares with them: then this one goes on with a lexer
    /// of its own, and only what fails with that has failed.
    fn ask<T>(&mut self, ask: impl Fn(&mut TokenParser) -> anyhow::Result<T>) -> Result<T, EngineError> {
        let parser = &mut self.parser;
        let failed = match guarded(|| ask(parser)) {
            Ok(found) if parser.parser.get_error().is_none() => return Ok(found),
            Ok(_) => parser.parser.get_error().map_or_else(String::new, |error| error.message()),
            Err(message) => message,
        };
        let mut own = self.fresh.deep_clone();
        let again = guarded(|| {
            for &token in &self.taken {
                own.consume_token(token)?;
            }
            ask(&mut own)
        });
        tracing::debug!(failed, again = again.is_ok(), "a shared lexer was given up");
        self.parser = own;
        again.map_err(EngineError::Schema)
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
            let scanner = self.scanner;
            let found = self.ask(|parser| Ok(close(parser, scanner)))?;
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
        let tokens = self.ask(|parser| Ok(parser.compute_ff_tokens()))?;
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
        self.ask(TokenParser::compute_mask)
    }

    /// Takes a token that the mask admits.
    ///
    /// # Errors
    /// llguidance gives up.
    pub fn accept(&mut self, token: u32) -> Result<(), EngineError> {
        self.ask(|parser| parser.consume_token(token))?;
        self.taken.push(token);
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
