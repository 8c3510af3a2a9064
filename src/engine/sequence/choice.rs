//! Choices in a constrained answer, with backtracking. When an item of a list repeats an earlier
//! one, the answer goes back to the comma before the item and ends the list there. If the list may
//! not end there, another item is chosen.
//!
//! Going back costs only the tokens that are taken back: the logits at positions to return to are
//! kept. How the answer continues depends on nothing but those logits, so batching and drafting
//! don't change it.

use std::collections::{HashMap, HashSet};

use super::super::constraint::{Repeat, Session};
use super::super::sampling::Memory;
use super::super::vocabulary::{Token, Vocabulary};
use super::super::{CloseReason, Closed, EngineError, FinishReason};
use super::{Added, Likelihoods, Sequence, no_token};

/// Number of alternative items that are tried in place of a repeated one. After that, the repeated
/// item may only be varied in its middle.
const OTHER_ITEMS: u32 = 4;
/// Number of tokens that are tried at one position before the shortest continuation is taken.
const OTHER_TOKENS: usize = 64;

/// A position before a token that the model chose, with what is needed to choose again.
#[derive(Debug, Clone)]
struct Position {
    token: usize,
    logits: Vec<f32>,
    memory: Memory,
}

/// The positions that an answer can return to, and what was tried there.
#[derive(Debug, Default)]
pub(super) struct Backtracking {
    positions: Vec<Position>,
    /// Tokens that led to a dead end or a repeat, by position.
    bans: HashMap<usize, HashSet<u32>>,
    /// Number of alternative items tried, by the token that contains the comma before them.
    tries: HashMap<usize, u32>,
    /// Tokens that may still be taken back.
    spare: usize,
    /// Values that were closed or removed, each with the token where that happened.
    closed: Vec<(usize, Closed)>,
}

/// The result of a choice.
enum Outcome {
    /// The answer continues with these tokens after its first `from` tokens.
    Fine {
        from: usize,
        tokens: Vec<u32>,
        sampled: usize,
        end: Option<FinishReason>,
        /// Whether the chosen token added to a value, and was not just a bracket or quotation mark.
        says: bool,
    },
    /// The answer has an item that repeats an earlier one.
    Repeats(Repeat),
    /// The answer can't be closed any more, with any number of tokens.
    DeadEnd,
}

impl Backtracking {
    /// State for an answer of at most `budget` tokens.
    pub(super) fn new(budget: usize) -> Self {
        Self { spare: budget.saturating_mul(2), ..Self::default() }
    }

    /// Takes the list of values that were closed or removed, in order.
    pub(super) fn closed(&mut self) -> Vec<Closed> {
        std::mem::take(&mut self.closed).into_iter().map(|(_, closed)| closed).collect()
    }

    fn note(&mut self, token: usize, closed: Closed) {
        if self.closed.iter().all(|(_, known)| *known != closed) {
            self.closed.push((token, closed));
        }
    }

    fn ban(&mut self, at: usize, token: u32) {
        self.bans.entry(at).or_default().insert(token);
    }

    /// Forgets everything after the first `to` tokens, because the answer goes back there.
    fn back(&mut self, to: usize) {
        self.positions.retain(|position| position.token <= to);
        self.bans.retain(|&at, _| at <= to);
        self.tries.retain(|&mark, _| mark <= to);
        self.closed.retain(|(token, _)| *token < to);
    }

    /// Keeps the logits where they may be needed again: at the comma before an item, and where the
    /// item first adds to a value. `marks` are the commas of items that may turn out to be repeats.
    fn remember(&mut self, marks: &[usize], place: impl FnOnce() -> Position, at: usize, says: bool) {
        let (Some(&first), Some(&inner)) = (marks.first(), marks.last()) else {
            self.positions.clear();
            self.bans.clear();
            self.tries.clear();
            return;
        };
        self.positions.retain(|position| position.token >= first);
        self.bans.retain(|&at, _| at >= first);
        let begins = says && at > inner && self.positions.iter().all(|position| position.token <= inner);
        if (marks.contains(&at) || begins) && self.positions.iter().all(|position| position.token != at) {
            self.positions.push(place());
        }
    }
}

impl Sequence {
    /// The tokens that the constraint dictates before any choice.
    pub(super) fn dictated(&mut self, session: &mut Session) -> Result<Added, EngineError> {
        let mut outcome = self.extend(session, self.left, None)?;
        if matches!(&outcome, Outcome::Repeats(repeat) if !repeat.invalid) {
            // A repeat that the schema itself dictates is intended.
            session.back(0)?;
            session.allow_repeats();
            outcome = self.extend(session, self.left, None)?;
        }
        match outcome {
            Outcome::Fine { tokens, sampled, end, .. } => Ok(Added { drop: 0, tokens, sampled, end }),
            Outcome::Repeats(_) | Outcome::DeadEnd => Err(no_other_item()),
        }
    }

    /// The model's choice, and the tokens that follow from it.
    pub(super) fn choose_constrained(
        &mut self,
        session: &mut Session,
        logits: &[f32],
        vocabulary: &Vocabulary,
    ) -> Result<Added, EngineError> {
        let here = session.len();
        let mut place: Option<Position> = None;
        for tries in 0..2 * OTHER_TOKENS {
            let (at, row) = place.as_ref().map_or((here, logits), |place| (place.token, &place.logits));
            let picked = if tries < OTHER_TOKENS { self.pick(session, at, row, vocabulary)? } else { None };
            let token = match picked {
                Some(token) => token,
                None => self.only_way(session, at, row, vocabulary)?,
            };
            let left = self.left + here - at;
            let outcome = if *vocabulary.token(token) == Token::End {
                let end = Some(FinishReason::Stop);
                Outcome::Fine { from: at, tokens: vec![token], sampled: 1, end, says: false }
            } else {
                self.extend(session, left, Some(token))?
            };
            match outcome {
                Outcome::Fine { from, tokens, sampled, end, says } => {
                    if end != Some(FinishReason::Length)
                        && let Some(added) = self.end_round(session, here)?
                    {
                        return Ok(added);
                    }
                    let now = || Position { token: at, logits: row.to_vec(), memory: self.sampler.memory() };
                    if session.watches() {
                        let marks = session.marks();
                        self.backtracking.remember(&marks, now, at, says);
                    }
                    if at < here && !self.sampled {
                        self.likelihoods = self.report.map(|top| Likelihoods::of(row, top));
                    }
                    return Ok(Added { drop: here - from, tokens, sampled, end });
                }
                Outcome::DeadEnd => {
                    session.back(at)?;
                    self.backtracking.ban(at, token);
                }
                Outcome::Repeats(repeat) => {
                    let now = Position { token: at, logits: row.to_vec(), memory: self.sampler.memory() };
                    let back = self.go_back(session, &repeat, now, here)?;
                    self.sampler.recall(back.memory.clone());
                    place = Some(back);
                }
            }
        }
        Err(no_other_item())
    }

    /// If a text loops, ends it where the loop began.
    fn end_round(&mut self, session: &mut Session, here: usize) -> Result<Option<Added>, EngineError> {
        // Text that was sent can't be taken back.
        let Some(to) = session.round().filter(|to| *to >= self.told) else {
            session.settle();
            return Ok(None);
        };
        let Some((from, tokens, path)) = session.end_text(to, self.force)? else {
            session.settle();
            return Ok(None);
        };
        tracing::debug!(answer = self.id, path, "a looping text is ended");
        let cost = here.saturating_sub(from);
        self.backtracking.back(from);
        self.backtracking.note(from, Closed { path, why: CloseReason::Loop });
        self.spend(session, cost);
        let end = session.ended()?.then_some(FinishReason::Length);
        Ok(Some(Added { drop: cost, tokens, sampled: 0, end }))
    }

    /// Counts tokens that are taken back. When the allowance is used up, the session closes
    /// everything that is open.
    fn spend(&mut self, session: &mut Session, cost: usize) {
        self.backtracking.spare = self.backtracking.spare.saturating_sub(cost);
        if self.backtracking.spare == 0 {
            session.exhaust();
        }
    }

    /// The model's choice among the tokens that the mask admits and that are not banned at this
    /// position; `None` if there is none.
    fn pick(
        &mut self,
        session: &mut Session,
        at: usize,
        logits: &[f32],
        vocabulary: &Vocabulary,
    ) -> Result<Option<u32>, EngineError> {
        let mask = session.mask()?;
        let due = session.due()?;
        let steered = session.steered().to_vec();
        let banned = self.backtracking.bans.get(&at).cloned().unwrap_or_default();
        let open = |token| mask.is_allowed(token) && vocabulary.speakable(token) && !banned.contains(&token);
        let steers = |token| {
            let bytes = vocabulary.bytes(token);
            !bytes.is_empty() && (bytes.starts_with(&steered) || steered.starts_with(bytes))
        };
        let all = 0..logits.len() as u32;
        let is_steered = !steered.is_empty() && all.clone().any(|token| steers(token) && open(token));
        let allowed = |token| open(token) && (!is_steered || steers(token));
        let due =
            due.filter(|(due, _)| all.clone().any(|token| due.is(vocabulary.bytes(token)) && allowed(token)));
        let fits = |token| due.is_none_or(|(due, _)| due.is(vocabulary.bytes(token))) && allowed(token);
        if let Some((due, why)) = due.filter(|(_, why)| why.is_some() || !session.is_cut()) {
            // Sample with a copy of the generator, to see whether the model ends the value here by
            // itself, alone or together with what follows.
            let own = self.sampler.clone().choose(logits, allowed).ok_or_else(no_token)?;
            if !due.begins(vocabulary.bytes(own)) {
                session.set_cut();
                if let Some(why) = why {
                    let path = session.path(due);
                    tracing::debug!(answer = self.id, path, why = why.name(), "a value is ended");
                    self.backtracking.note(at, Closed { path, why });
                }
            }
        }
        self.look_at_sampler(logits, fits);
        match self.sampler.choose(logits, fits) {
            None if banned.is_empty() => Err(no_token()),
            picked => Ok(picked),
        }
    }

    /// The token to continue with if all tokens that the model would choose are banned.
    fn only_way(
        &mut self,
        session: &mut Session,
        at: usize,
        logits: &[f32],
        vocabulary: &Vocabulary,
    ) -> Result<u32, EngineError> {
        if session.is_strict() {
            let token = session.closing()?.first().copied().ok_or_else(no_other_item)?;
            if let Some(top) = self.report.filter(|_| self.sampled) {
                // No other token can be drawn.
                self.likelihoods = Some(Likelihoods::of_shares(logits.len(), &[(token, 1.0)], top));
            }
            return Ok(token);
        }
        session.allow_repeats();
        self.backtracking.bans.clear();
        self.pick(session, at, logits, vocabulary)?.ok_or_else(no_token)
    }

    /// Accepts the model's choice, if there is one, and the tokens that the constraint dictates
    /// after it. If the answer could not be closed after them, closes it instead.
    ///
    /// Invariant: before and after, the answer can be closed with the tokens that are left.
    fn extend(
        &mut self,
        session: &mut Session,
        left: usize,
        chosen: Option<u32>,
    ) -> Result<Outcome, EngineError> {
        let from = session.len();
        let escape = if self.is_near(left) { Some(session.closing()?.to_vec()) } else { None };
        let mut tokens = Vec::new();
        let before = session.said();
        if let Some(token) = chosen {
            session.accept(token)?;
            tokens.push(token);
        }
        let says = session.said() > before;
        if self.force {
            tokens.extend(session.forced()?);
        }
        if let Some(repeat) = session.repeat() {
            return Ok(Outcome::Repeats(repeat));
        }
        let sampled = usize::from(chosen.is_some());
        let ended = session.ended()?;
        if !session.closes() && !ended && tokens.len() >= left {
            // An answer that isn't JSON is cut where tokens run out, like free text.
            tokens.truncate(left);
            let sampled = sampled.min(tokens.len());
            let end = Some(FinishReason::Length);
            return Ok(Outcome::Fine { from, tokens, sampled, end, says });
        }
        let strict = session.is_strict();
        let fits = match left.checked_sub(tokens.len()) {
            Some(_) if ended => true,
            None | Some(0) => false,
            Some(_) if escape.is_none() => true,
            Some(rest) => match session.closing() {
                Ok(closing) => closing.len() <= rest,
                Err(_) if strict => return Ok(Outcome::DeadEnd),
                Err(error) => return Err(error),
            },
        };
        match escape {
            Some(escape) if !fits => self.escape(session, left, from, escape),
            _ => {
                let end = ended.then_some(FinishReason::Stop);
                Ok(Outcome::Fine { from, tokens, sampled, end, says })
            }
        }
    }

    /// Closes an answer after its first `from` tokens. An item that is broken off must not become a
    /// repeat of an earlier one.
    fn escape(
        &mut self,
        session: &mut Session,
        left: usize,
        from: usize,
        escape: Vec<u32>,
    ) -> Result<Outcome, EngineError> {
        let end = Some(FinishReason::Length);
        if session.watches() && !session.is_strict() {
            session.back(from)?;
            if let Some(repeat) = session.repeat_after(&escape).filter(|repeat| repeat.mark.token < from) {
                let to = repeat.mark.token;
                session.back(to)?;
                let tokens = session.closing()?.to_vec();
                if tokens.len() <= left + from - to {
                    self.backtracking.back(to);
                    return Ok(Outcome::Fine { from: to, tokens, sampled: 0, end, says: false });
                }
            }
        }
        Ok(Outcome::Fine { from, tokens: escape, sampled: 0, end, says: false })
    }

    /// Goes back from a repeated item to a position where something else can be chosen: before the
    /// item, to end the list, if the list may end there; otherwise, to choose another item or
    /// another end of this one. `now` is the position of the last choice, and `here` is the number
    /// of tokens before this step.
    fn go_back(
        &mut self,
        session: &mut Session,
        repeat: &Repeat,
        now: Position,
        here: usize,
    ) -> Result<Position, EngineError> {
        let mark = repeat.mark.token;
        let said: Vec<u32> = (mark..session.len()).map(|index| session.taken(index)).collect();
        let at = |token: usize| {
            let known = self.backtracking.positions.iter().find(|position| position.token == token);
            if token == now.token { Some(now.clone()) } else { known.cloned() }
        };
        let comma = at(mark);
        let begins =
            self.backtracking.positions.iter().map(|position| position.token).filter(|&token| token > mark);
        let begins = begins.filter(|&token| token < now.token).min().unwrap_or(now.token);
        let other = at(begins).expect("both are known");
        let closed = Closed { path: repeat.path.clone(), why: CloseReason::RepeatedItem };
        session.back(mark.min(now.token))?;
        if let Some(comma) = comma
            && session.close_list(repeat.mark, said[0])
        {
            tracing::debug!(
                answer = self.id,
                path = closed.path,
                "a repeated item is removed and its list ended"
            );
            self.backtracking.back(mark);
            self.backtracking.note(mark, closed);
            self.spend(session, here.saturating_sub(mark));
            return Ok(comma);
        }
        tracing::debug!(
            answer = self.id,
            path = closed.path,
            "a repeated item is removed, another is chosen"
        );
        let tries = self.backtracking.tries.entry(mark).or_default();
        *tries += 1;
        let cost = here.saturating_sub(begins);
        let again = *tries <= OTHER_ITEMS && cost <= self.backtracking.spare;
        let place = if again { other } else { now };
        if again {
            self.backtracking.spare -= cost;
        }
        for index in session.len()..place.token {
            session.accept(said[index - mark])?;
        }
        self.backtracking.back(place.token);
        if again || repeat.invalid {
            self.backtracking.ban(place.token, said[place.token - mark]);
            self.backtracking.note(mark, closed);
        } else {
            // The list has to continue and the model offers nothing else. The answer is valid with
            // the repeat.
            session.allow_repeats();
        }
        Ok(place)
    }
}

fn no_other_item() -> EngineError {
    EngineError::Schema("no distinct items were found, as uniqueItems requires".to_owned())
}
