//! The state of the constraint of one answer.

use std::fmt;
use std::sync::Arc;

use llguidance::TokenParser;
use toktrie::{Recognizer, SimpleVob};

use super::grammars::{Grammar, Key};
use super::json_cursor::{Place, Scanner};
use super::repeats::{Loops, Mark, Repeat, Rules, Shapes, Watch};
use super::token_budget::{Due, Shares};
use super::{close, guarded};
use crate::engine::{CloseReason, EngineError, Guard};

/// The constraint of one answer.
pub struct Session {
    key: Key,
    parser: TokenParser,
    fresh: Arc<TokenParser>,
    /// All tokens so far.
    taken: Vec<u32>,
    scanner: Scanner,
    shares: Shares,
    budget: usize,
    /// Number of tokens that preceded the first cut of a value.
    cut: Option<usize>,
    shapes: Option<Arc<Shapes>>,
    /// Tracks which items have to differ, and which texts loop.
    watch: Option<Watch>,
    loops: Option<Loops>,
    /// Bytes that must come next.
    steered: Vec<u8>,
    bound: usize,
    /// Maximum levels of brackets that a closing has to open.
    levels: usize,
    closes: bool,
    /// A closing from the current state, if it was computed.
    closing: Option<Vec<u32>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(key: Key, grammar: Grammar) -> Self {
        let Grammar { parser, fresh, closing, bound, levels, shapes } = grammar;
        let strict = |shapes| Watch::new(Arc::new(Rules { shapes: Some(shapes), guard: None }));
        Self {
            key,
            parser,
            fresh,
            taken: Vec::new(),
            scanner: Scanner::START,
            shares: Shares::new(usize::MAX),
            budget: usize::MAX,
            cut: None,
            watch: shapes.clone().map(strict),
            shapes,
            loops: None,
            steered: Vec::new(),
            bound,
            levels,
            closes: closing.is_some(),
            closing,
        }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Sets the maximum number of tokens of the answer.
    pub fn set_budget(&mut self, budget: usize) {
        self.shares = Shares::new(budget);
        self.budget = budget;
    }

    /// Guards the answer against repeating itself and against more than `most` tokens. Text that is
    /// copied from the prompt is no loop.
    pub fn guard(&mut self, guard: &Guard, most: usize, prompt: Arc<str>) {
        if self.closes {
            let most = guard.longest.map_or(usize::MAX, |_| most);
            self.set_budget(self.budget.min(most));
            self.loops = Some(Loops::new(guard.longest, most, prompt));
            let rules = Rules { shapes: self.shapes.clone(), guard: Some(guard.clone()) };
            self.watch = Some(Watch::new(Arc::new(rules)));
        }
    }

    /// Number of tokens so far.
    pub fn len(&self) -> usize {
        self.taken.len()
    }

    /// A token of the answer so far.
    pub fn taken(&self, index: usize) -> u32 {
        self.taken[index]
    }

    /// If a text has looped, the number of tokens to keep.
    pub fn round(&self) -> Option<usize> {
        self.loops.as_ref().and_then(Loops::round)
    }

    /// Accepts the texts up to here as they are.
    pub fn settle(&mut self) {
        if let Some(loops) = &mut self.loops {
            loops.settle();
        }
    }

    /// Ends a looping text after `to` tokens or a few more. Returns the number of tokens kept, the
    /// tokens that follow, and the text's path. If the text can't end there, returns `None` and
    /// leaves the answer unchanged.
    ///
    /// # Errors
    /// llguidance fails.
    pub fn end_text(
        &mut self,
        to: usize,
        force: bool,
    ) -> Result<Option<(usize, Vec<u32>, String)>, EngineError> {
        let said = self.taken.clone();
        let quote = self.parser.token_env.tok_trie().token_id(b"\"");
        if let Some(loops) = &mut self.loops {
            loops.set_again();
        }
        self.back(to)?;
        for (at, &token) in said.iter().enumerate().skip(to) {
            // The token may end within a character.
            let may = self.scanner.place() == Place::String;
            if may
                && let Some(quote) = quote
                && self.mask()?.is_allowed(quote)
            {
                let path = self.watch.as_ref().map_or_else(String::new, Watch::path);
                self.accept(quote)?;
                self.set_cut();
                let mut tokens = vec![quote];
                if force {
                    tokens.extend(self.forced()?);
                }
                // The text may still end with much of one phrase, if that was already sent.
                self.settle();
                return Ok(Some((at, tokens, path)));
            }
            self.accept(token)?;
        }
        Ok(None)
    }

    /// From now on, everything that is open is to be ended.
    pub fn exhaust(&mut self) {
        if let Some(loops) = &mut self.loops {
            loops.exhaust();
        }
    }

    /// The first token that is uncertain, because an item may turn out to be a repeat or a text a
    /// loop.
    pub fn uncertain(&self) -> Option<usize> {
        let item = self.watch.as_ref().and_then(|watch| watch.marks().next()).map(|mark| mark.token);
        let text = self.loops.as_ref().and_then(Loops::held);
        item.into_iter().chain(text).min()
    }

    /// The item that repeats another of its list, if there is one.
    pub fn repeat(&self) -> Option<Repeat> {
        self.watch.as_ref().and_then(Watch::found).cloned()
    }

    /// Whether equal items would make the answer invalid.
    pub fn is_strict(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_strict)
    }

    /// From now on, allows repeats that leave the answer valid.
    pub fn allow_repeats(&mut self) {
        let strict = |shapes| Watch::new(Arc::new(Rules { shapes: Some(shapes), guard: None }));
        self.watch = self.shapes.clone().map(strict);
        if let Some(watch) = &mut self.watch {
            for (index, &token) in self.taken.iter().enumerate() {
                watch.push_all(index, self.parser.token_env.tok_trie().token(token));
            }
        }
    }

    /// The tokens where items begin that may turn out to be repeats, outermost first.
    pub fn marks(&self) -> Vec<usize> {
        self.watch.iter().flat_map(Watch::marks).map(|mark| mark.token).collect()
    }

    /// The item that would be a repeat after these tokens.
    pub fn repeat_after(&self, tokens: &[u32]) -> Option<Repeat> {
        let mut watch = self.watch.clone()?;
        for (index, &token) in (self.taken.len()..).zip(tokens) {
            watch.push_all(index, self.parser.token_env.tok_trie().token(token));
        }
        watch.found().cloned()
    }

    /// Bytes of values so far, if items have to differ.
    pub fn said(&self) -> usize {
        self.watch.as_ref().map_or(0, Watch::said)
    }

    /// Whether items have to differ anywhere.
    pub fn watches(&self) -> bool {
        self.watch.is_some()
    }

    /// JSON pointer of the value that `due` ends.
    pub fn path(&self, due: Due) -> String {
        let path = self.watch.as_ref().map_or_else(String::new, Watch::path);
        match due {
            Due::Quote | Due::Number => path,
            Due::Bracket => path.rsplit_once('/').map_or_else(String::new, |(list, _)| list.to_owned()),
        }
    }

    /// Goes back to the state after the first `to` tokens.
    ///
    /// # Errors
    /// llguidance fails.
    pub fn back(&mut self, to: usize) -> Result<(), EngineError> {
        let dropped = self.taken.len().saturating_sub(to);
        if dropped == 0 {
            return Ok(());
        }
        self.taken.truncate(to);
        let parser = &mut self.parser;
        let rolled = guarded(|| parser.rollback(dropped));
        if rolled.is_err() || parser.parser.get_error().is_some() {
            let mut own = self.fresh.deep_clone();
            let taken = &self.taken;
            guarded(|| taken.iter().try_for_each(|&token| own.consume_token(token).map(drop)))
                .map_err(EngineError::Schema)?;
            self.parser = own;
        }
        self.closing = None;
        self.steered.clear();
        self.cut = self.cut.filter(|&cut| cut < to);
        (self.scanner, self.shares) = (Scanner::START, Shares::new(self.budget));
        self.watch = self.watch.as_ref().map(Watch::anew);
        self.loops = self.loops.as_ref().map(Loops::anew);
        for index in 0..to {
            self.follow(index);
        }
        self.settle();
        Ok(())
    }

    /// Updates the trackers with a token that was accepted.
    fn follow(&mut self, index: usize) {
        let bytes = self.parser.token_env.tok_trie().token(self.taken[index]);
        self.shares.accept(&mut self.scanner, bytes);
        if let Some(watch) = &mut self.watch {
            watch.push_all(index, bytes);
        }
        if let Some(loops) = &mut self.loops {
            loops.push_all(bytes);
        }
        self.steered = self.steered.strip_prefix(bytes).map(<[u8]>::to_vec).unwrap_or_default();
    }

    /// Ends the list whose next item begins at the mark, if the list may end there. The answer must
    /// have gone back to the token with the mark.
    pub fn close_list(&mut self, mark: Mark, token: u32) -> bool {
        let bytes = self.parser.token_env.tok_trie().token(token);
        let end = [&bytes[..mark.before], b"]"].concat();
        let may = self.may_follow(&end);
        if may {
            self.steered = end;
        }
        may
    }

    fn may_follow(&mut self, bytes: &[u8]) -> bool {
        let parser = &mut self.parser.parser;
        // The parser has already advanced over the bytes that it found to be forced.
        let forced = parser.currently_forced_bytes();
        let Some(rest) = bytes.strip_prefix(forced) else { return forced.starts_with(bytes) };
        parser.with_recognizer(|recognizer| {
            recognizer.trie_started("list");
            let pushed = rest.iter().take_while(|&&byte| recognizer.try_push_byte(byte)).count();
            recognizer.pop_bytes(pushed);
            recognizer.trie_finished();
            pushed == rest.len()
        })
    }

    /// Bytes that must come next to end a list.
    pub fn steered(&self) -> &[u8] {
        &self.steered
    }

    /// What should come next, if it may, so that a string or array that grows too long leaves
    /// tokens for what has to follow. Gives the reason if the value loops or is too long in itself.
    ///
    /// # Errors
    /// As for [`Session::closing`].
    pub fn due(&mut self) -> Result<Option<(Due, Option<CloseReason>)>, EngineError> {
        if !self.closes {
            return Ok(None);
        }
        if let Some((due, why)) = self.loops.as_ref().and_then(Loops::due) {
            return Ok(Some((due, Some(why))));
        }
        let mut shares = std::mem::replace(&mut self.shares, Shares::new(0));
        let due = shares.due(self.scanner, || {
            let tokens = self.closing()?.to_vec();
            let trie = self.parser.token_env.tok_trie();
            Ok(tokens.into_iter().flat_map(|token| trie.token(token).to_vec()).collect())
        });
        self.shares = shares;
        Ok(due?.map(|due| (due, None)))
    }

    /// Records that a value is ended which the model would have continued.
    pub fn set_cut(&mut self) {
        self.cut.get_or_insert(self.taken.len());
    }

    /// Whether a value was ended which the model would have continued.
    pub fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// Queries the parser. Other answers may have used up the shared lexer; in that case this
    /// answer continues with a lexer of its own, and only an error with that one counts.
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
        tracing::debug!(failed, again = again.is_ok(), "switched to a lexer of its own");
        self.parser = own;
        again.map_err(if self.closes { EngineError::Schema } else { EngineError::Grammar })
    }

    /// Whether the answer is closed when tokens run out. If not, `bound` and `closing` must not be
    /// called.
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// While at least this many tokens are left, the answer can be closed without computing how.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Tokens that close the answer from here.
    ///
    /// # Errors
    /// No closing was found.
    pub fn closing(&mut self) -> Result<&[u32], EngineError> {
        if self.closing.is_none() {
            let (scanner, levels) = (self.scanner, self.levels);
            let watch = self.watch.clone().filter(Watch::is_strict);
            let found = self.ask(|parser| Ok(close(parser, scanner, levels, watch.clone())))?;
            let missing = || EngineError::Schema("no short way to close the answer was found".to_owned());
            self.closing = Some(found.ok_or_else(missing)?);
        }
        Ok(self.closing.as_deref().expect("it was filled above"))
    }

    /// Accepts and returns the tokens that the constraint dictates from here.
    ///
    /// # Errors
    /// llguidance fails.
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

    /// The mask of tokens that may come next. It includes an end-of-turn token if the answer may
    /// end.
    ///
    /// # Errors
    /// llguidance fails.
    pub fn mask(&mut self) -> Result<SimpleVob, EngineError> {
        self.ask(TokenParser::compute_mask)
    }

    /// Accepts a token that the mask admits.
    ///
    /// # Errors
    /// llguidance fails.
    pub fn accept(&mut self, token: u32) -> Result<(), EngineError> {
        self.ask(|parser| parser.consume_token(token))?;
        self.taken.push(token);
        self.follow(self.taken.len() - 1);
        self.closing = None;
        Ok(())
    }

    /// Whether the answer is complete and nothing can follow.
    ///
    /// # Errors
    /// llguidance fails.
    pub fn ended(&mut self) -> Result<bool, EngineError> {
        if self.parser.stopped() {
            return Ok(true);
        }
        self.ask(TokenParser::check_stop)
    }
}
