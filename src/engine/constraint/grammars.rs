//! Compiles grammars once and caches them by the hash of their text.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use toktrie::{InferenceCapabilities, TokEnv};

use super::json_cursor::Scanner;
use super::repeats::{Rules, Shapes, Watch};
use super::session::Session;
use super::{close, gbnf, guarded, schema, size};
use crate::engine::{Constraint, EngineError};

/// Maximum number of cached grammars, and their approximate maximum memory in bytes.
pub(super) const MOST_GRAMMARS: usize = 32;
const MOST_BYTES: usize = 512 << 20;
/// Maximum states of a grammar's lexer. Answers share the lexer and add states to it. A grammar is
/// renewed when half of them are used, so that each answer finds as many as any could need.
const LEXER_STATES: usize = 100_000;
/// Number of levels that a closing may open beyond the fewest, so that an item can differ from
/// others.
const LEVELS_TO_DIFFER: usize = 2;

/// Compiles constraints for one vocabulary and caches the results. Threads share it; a compilation
/// on one thread does not block the others.
pub struct Grammars {
    factory: ParserFactory,
    cache: Mutex<Cache>,
    /// Number of lexer states from which on a grammar is renewed.
    used_up: usize,
}

/// The cache of compiled grammars.
pub(super) struct Cache {
    pub(super) grammars: HashMap<Key, Cached>,
    clock: u64,
    /// Maximum bytes of all grammars together.
    pub(super) limit: usize,
}

/// Hash of a constraint.
pub(super) type Key = [u8; 32];

pub(super) struct Cached {
    pub(super) grammar: Result<Grammar, EngineError>,
    /// Memory that the grammar took when an answer last began with it.
    bytes: usize,
    used: u64,
}

/// A compiled constraint, from which answers begin.
pub struct CompiledConstraint {
    key: Key,
    grammar: Grammar,
}

#[derive(Clone)]
pub(super) struct Grammar {
    pub(super) parser: TokenParser,
    /// The parser as it was compiled. Its lexer has no states from any answer.
    pub(super) fresh: Arc<TokenParser>,
    /// A closing of the empty answer; `None` for grammars that aren't JSON, which are not closed.
    pub(super) closing: Option<Vec<u32>>,
    pub(super) bound: usize,
    pub(super) levels: usize,
    /// The lists whose items have to differ, if there are any.
    pub(super) shapes: Option<Arc<Shapes>>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("cached", &self.cache().grammars.len()).finish_non_exhaustive()
    }
}

impl Grammars {
    /// Creates an empty cache for a vocabulary.
    ///
    /// # Errors
    /// llguidance can't work with the vocabulary.
    pub fn new(tokens: &TokEnv) -> Result<Self, EngineError> {
        Self::with_states(tokens, LEXER_STATES)
    }

    pub(super) fn with_states(tokens: &TokEnv, states: usize) -> Result<Self, EngineError> {
        let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        let mut factory = ParserFactory::new(tokens, capabilities, &SlicedBiasComputer::json_slices())
            .map_err(|e| EngineError::Internal(format!("llguidance: {e}")))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            // One client's constraint must not delay others for long or fill the memory: roughly
            // 0.1 s and 100 MB.
            max_grammar_size: 100_000,
            max_lexer_states: states,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let cache = Mutex::new(Cache { grammars: HashMap::new(), clock: 0, limit: MOST_BYTES });
        Ok(Self { factory, cache, used_up: states / 2 })
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The compiled constraint, if it is cached or refused without compiling.
    pub fn known(&self, constraint: &Constraint) -> Option<Result<Box<CompiledConstraint>, EngineError>> {
        match key(constraint) {
            Ok((key, _)) => self.cache().find(key),
            Err(error) => Some(Err(error)),
        }
    }

    /// The compiled constraint. Compiles it if necessary.
    ///
    /// # Errors
    /// [`EngineError::Schema`]: the schema can't be enforced, it is too large, or no instance of it
    /// was found. [`EngineError::Grammar`]: llguidance rejects the grammar or regular expression,
    /// or it is too large.
    pub fn compile(&self, constraint: &Constraint) -> Result<Box<CompiledConstraint>, EngineError> {
        let (key, text) = key(constraint)?;
        if let Some(known) = self.cache().find(key) {
            return known;
        }
        let grammar = self.compile_new(constraint, text);
        self.cache().put(key, grammar.clone());
        Ok(Box::new(CompiledConstraint { key, grammar: grammar? }))
    }

    /// A short value that validates against a schema.
    #[cfg(feature = "test-support")]
    pub(super) fn shortest(&self, schema: &Value) -> Result<String, EngineError> {
        let CompiledConstraint { grammar, .. } = *self.compile(&Constraint::JsonSchema(schema.clone()))?;
        let trie = grammar.parser.token_env.tok_trie();
        Ok(trie.decode_str(grammar.closing.as_deref().unwrap_or_default()))
    }

    /// Begins an answer. Renews a grammar whose lexer is used up. Waits while another thread uses
    /// the lexer.
    pub fn begin(&self, constraint: CompiledConstraint) -> Session {
        let CompiledConstraint { key, mut grammar } = constraint;
        let stats = grammar.parser.parser.lexer_stats();
        let renew = stats.num_states > self.used_up;
        if renew {
            grammar.parser = grammar.fresh.deep_clone();
        }
        let bytes = grammar.bytes();
        if let Some(kept) = self.cache().grammars.get_mut(&key) {
            kept.bytes = bytes;
            if renew {
                kept.grammar = Ok(grammar.clone());
            }
        }
        Session::new(key, grammar)
    }

    fn compile_new(&self, constraint: &Constraint, text: String) -> Result<Grammar, EngineError> {
        match constraint {
            Constraint::JsonSchema(schema) => compile(&self.factory, schema),
            Constraint::JsonObject => compile(&self.factory, &any_object()),
            Constraint::Regex(_) => grammar(&self.factory, TopLevelGrammar::from_regex(&text)),
            Constraint::Gbnf(_) => gbnf::to_lark(&text)
                .map_err(EngineError::Grammar)
                .and_then(|lark| grammar(&self.factory, TopLevelGrammar::from_lark(lark))),
            Constraint::Lark(_) => size::check_lark(&text)
                .and_then(|()| grammar(&self.factory, TopLevelGrammar::from_lark(text))),
        }
    }

    /// Drops a grammar whose parser failed, because its shared lexer may be full or broken.
    pub fn forget(&self, session: &Session) {
        self.cache().grammars.remove(&session.key());
    }
}

impl Cache {
    fn find(&mut self, key: Key) -> Option<Result<Box<CompiledConstraint>, EngineError>> {
        self.clock += 1;
        let kept = self.grammars.get_mut(&key)?;
        kept.used = self.clock;
        Some(kept.grammar.clone().map(|grammar| Box::new(CompiledConstraint { key, grammar })))
    }

    fn put(&mut self, key: Key, grammar: Result<Grammar, EngineError>) {
        if !self.grammars.contains_key(&key) {
            self.make_room();
        }
        self.clock += 1;
        let bytes = grammar.as_ref().map_or(0, Grammar::bytes);
        self.grammars.insert(key, Cached { grammar, bytes, used: self.clock });
    }

    /// Removes the least recently used grammars until there is room.
    fn make_room(&mut self) {
        let mut all: usize = self.grammars.values().map(|kept| kept.bytes).sum();
        while (self.grammars.len() >= MOST_GRAMMARS || all > self.limit)
            && let Some(oldest) = self.grammars.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key)
        {
            all -= self.grammars.remove(&oldest).map_or(0, |kept| kept.bytes);
        }
    }
}

/// Hash of a constraint, and its text.
fn key(constraint: &Constraint) -> Result<(Key, String), EngineError> {
    let text = match constraint {
        Constraint::JsonSchema(schema) => schema.to_string(),
        Constraint::JsonObject => String::new(),
        Constraint::Regex(text) | Constraint::Gbnf(text) | Constraint::Lark(text) => text.clone(),
    };
    size::check_bytes(&text).map_err(match constraint {
        Constraint::JsonSchema(_) | Constraint::JsonObject => EngineError::Schema,
        Constraint::Regex(_) | Constraint::Gbnf(_) | Constraint::Lark(_) => EngineError::Grammar,
    })?;
    let kind = std::mem::discriminant(constraint);
    Ok((Sha256::digest(format!("{kind:?}{text}")).into(), text))
}

impl Grammar {
    fn new(parser: TokenParser, closing: Option<Vec<u32>>, bound: usize, levels: usize) -> Self {
        Self { fresh: Arc::new(parser.deep_clone()), parser, closing, bound, levels, shapes: None }
    }

    /// Approximate memory of the grammar in bytes.
    fn bytes(&self) -> usize {
        self.parser.parser.lexer_stats().num_bytes + self.fresh.parser.lexer_stats().num_bytes
    }
}

/// Compiles a grammar that need not be JSON.
fn grammar(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Grammar, EngineError> {
    let parser = parser(factory, GrammarInit::Serialized(grammar)).map_err(EngineError::Grammar)?;
    Ok(Grammar::new(parser, None, usize::MAX, 0))
}

fn parser(factory: &ParserFactory, init: GrammarInit) -> Result<TokenParser, String> {
    guarded(|| {
        let mut parser = factory.create_parser_from_init_default(init)?;
        parser.start_without_prompt();
        Ok(parser)
    })
}

fn compile(factory: &ParserFactory, schema: &Value) -> Result<Grammar, EngineError> {
    size::check_schema(schema)?;
    let compiled = guarded(|| Ok(schema::compile(schema)?)).map_err(EngineError::Schema)?;
    let shapes = Shapes::of(schema).map(Arc::new);
    // If items have to differ, the shortest closing may be a repeat, so there is no bound.
    let (bound, levels) = match &shapes {
        Some(_) => (usize::MAX, compiled.levels + LEVELS_TO_DIFFER),
        None => (compiled.bound.unwrap_or(usize::MAX), compiled.levels),
    };
    let init = GrammarInit::Internal(compiled.grammar, compiled.lexer);
    let mut parser = parser(factory, init).map_err(EngineError::Schema)?;
    let watch =
        shapes.clone().map(|shapes| Watch::new(Arc::new(Rules { shapes: Some(shapes), guard: None })));
    let closing = guarded(|| Ok(close(&mut parser, Scanner::START, levels, watch)))
        .map_err(EngineError::Schema)?
        .ok_or_else(|| EngineError::Schema("#: no short value that validates was found".to_owned()))?;
    Ok(Grammar { shapes, ..Grammar::new(parser, Some(closing), bound, levels) })
}

/// A schema of any object. Its numbers have the usual limits.
pub(super) fn any_object() -> Value {
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
