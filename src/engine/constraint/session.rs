//! One answer as it takes shape.

use std::fmt;
use std::sync::{Arc, Mutex};

use llguidance::TokenParser;
use toktrie::SimpleVob;

use super::grammars::{Grammar, Key};
use super::scanner::Scanner;
use super::shares::{Due, Shares};
use super::{close, guarded};
use crate::engine::EngineError;

/// A session that somebody may look ahead in.
pub type Shared = Arc<Mutex<Session>>;

/// One constrained answer.
pub struct Session {
    key: Key,
    parser: TokenParser,
    fresh: Arc<TokenParser>,
    /// All tokens so far.
    taken: Vec<u32>,
    scanner: Scanner,
    shares: Shares,
    /// Whether a value was ended that would have gone on, so that others get their share.
    is_cut: bool,
    bound: usize,
    /// Levels of brackets that closing has to open at most.
    levels: usize,
    closes: bool,
    /// A way to the end from here, if it was looked for.
    closing: Option<Vec<u32>>,
    /// What may come next, if somebody has looked ahead.
    foreseen: Option<SimpleVob>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(key: Key, grammar: Grammar) -> Self {
        let Grammar { parser, fresh, closing, bound, levels } = grammar;
        Self {
            key,
            parser,
            fresh,
            taken: Vec::new(),
            scanner: Scanner::START,
            shares: Shares::new(usize::MAX),
            is_cut: false,
            bound,
            levels,
            closes: closing.is_some(),
            closing,
            foreseen: None,
        }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    #[cfg(test)]
    pub fn is_foreseen(&self) -> bool {
        self.foreseen.is_some()
    }

    /// Looks at what may come next, and, if that will be wanted, for a way to the end, so that both are there when they are
    /// asked for. What fails here fails again then.
    pub fn foresee(&mut self, closing: bool) {
        if self.parser.stopped() {
            return;
        }
        if self.foreseen.is_none() {
            self.foreseen = self.ask(TokenParser::compute_mask).ok();
        }
        if closing {
            let _ = self.closing();
        }
    }

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
        again.map_err(if self.closes { EngineError::Schema } else { EngineError::Grammar })
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
            let (scanner, levels) = (self.scanner, self.levels);
            let found = self.ask(|parser| Ok(close(parser, scanner, levels)))?;
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
        match self.foreseen.take() {
            Some(mask) => Ok(mask),
            None => self.ask(TokenParser::compute_mask),
        }
    }

    /// Takes a token that the mask admits.
    ///
    /// # Errors
    /// llguidance gives up.
    pub fn accept(&mut self, token: u32) -> Result<(), EngineError> {
        self.ask(|parser| parser.consume_token(token))?;
        self.taken.push(token);
        self.shares.accept(&mut self.scanner, self.parser.token_env.tok_trie().token(token));
        (self.closing, self.foreseen) = (None, None);
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
