//! Choices in an answer that has a shape. An answer that repeats an item of a list goes back to the
//! comma in front of it and ends the list there; where the list may not end, another item is taken.
//!
//! Going back costs nothing but the tokens that are taken back: what the model said at the places
//! that can be gone back to is kept. How the answer goes on depends on that and on nothing else, so
//! batches and guesses change nothing about it.

use std::collections::{HashMap, HashSet};

use super::super::constraint::{Repeat, Session};
use super::super::sampling::Memory;
use super::super::vocabulary::{Token, Vocabulary};
use super::super::{CloseReason, Closed, EngineError, FinishReason};
use super::{Added, Likelihoods, Sequence, no_token};

/// Other items that are tried in the place of one that is there already, before it may become
/// another one in its middle.
const OTHER_ITEMS: u32 = 4;
/// Tokens that are tried at one place before the shortest way on is taken.
const OTHER_TOKENS: usize = 64;

/// A place before a token that the model chose.
#[derive(Debug, Clone)]
struct Position {
    token: usize,
    logits: Vec<f32>,
    memory: Memory,
}

/// Where an answer can go back to, and what it would find there.
#[derive(Debug, Default)]
pub(super) struct Turns {
    places: Vec<Position>,
    /// What has led nowhere, by the place.
    bans: HashMap<usize, HashSet<u32>>,
    /// Other items that were tried, by the token with the comma before them.
    tries: HashMap<usize, u32>,
    /// Tokens that may still be taken back where a list can't be ended instead.
    spare: usize,
    /// What the answer was kept from, and at which token.
    closed: Vec<(usize, Closed)>,
}

/// What comes of a choice.
enum Outcome {
    /// These tokens, behind the first `from` of the answer.
    Fine {
        from: usize,
        tokens: Vec<u32>,
        sampled: usize,
        end: Option<FinishReason>,
        /// Whether the choice said something, and was no mere bracket or quotation mark.
        says: bool,
    },
    /// An item is there already.
    Repeats(Repeat),
    /// The answer could not be closed any more, however many tokens it had.
    DeadEnd,
}

impl Turns {
    /// For an answer of at most so many tokens.
    pub(super) fn new(budget: usize) -> Self {
        Self { spare: budget.saturating_mul(2), ..Self::default() }
    }

    /// What the answer was kept from, in order.
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

    /// What was behind so many tokens is no more.
    fn back(&mut self, to: usize) {
        self.places.retain(|place| place.token <= to);
        self.bans.retain(|&at, _| at <= to);
        self.tries.retain(|&mark, _| mark <= to);
        self.closed.retain(|(token, _)| *token < to);
    }

    /// Keeps what the model said where that may be wanted again: at the comma before an item, and
    /// where the item itself begins to say something. `marks` are the commas of items that may turn
    /// out to be repeats.
    fn remember(&mut self, marks: &[usize], place: impl FnOnce() -> Position, at: usize, says: bool) {
        let (Some(&first), Some(&inner)) = (marks.first(), marks.last()) else {
            self.places.clear();
            self.bans.clear();
            self.tries.clear();
            return;
        };
        self.places.retain(|place| place.token >= first);
        self.bans.retain(|&at, _| at >= first);
        let begins = says && at > inner && self.places.iter().all(|place| place.token <= inner);
        if (marks.contains(&at) || begins) && self.places.iter().all(|place| place.token != at) {
            self.places.push(place());
        }
    }
}

impl Sequence {
    /// What the constraint dictates before any choice.
    pub(super) fn dictated(&mut self, session: &mut Session) -> Result<Added, EngineError> {
        let mut outcome = self.extend(session, self.left, None)?;
        if matches!(&outcome, Outcome::Repeats(repeat) if !repeat.invalid) {
            // Whoever dictates it wants it.
            session.back(0)?;
            session.allow_repeats();
            outcome = self.extend(session, self.left, None)?;
        }
        match outcome {
            Outcome::Fine { tokens, sampled, end, .. } => Ok(Added { drop: 0, tokens, sampled, end }),
            Outcome::Repeats(_) | Outcome::DeadEnd => Err(no_other_item()),
        }
    }

    /// The model's choice, and what follows from it.
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
                        self.turns.remember(&marks, now, at, says);
                    }
                    if at < here && !self.sampled {
                        self.likelihoods = self.report.map(|top| Likelihoods::of(row, top));
                    }
                    return Ok(Added { drop: here - from, tokens, sampled, end });
                }
                Outcome::DeadEnd => {
                    session.back(at)?;
                    self.turns.ban(at, token);
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

    /// Ends a text that has gone round where it began to.
    fn end_round(&mut self, session: &mut Session, here: usize) -> Result<Option<Added>, EngineError> {
        // What was told stays.
        let Some(to) = session.round().filter(|to| *to >= self.told) else {
            session.settle();
            return Ok(None);
        };
        let Some((from, tokens, path)) = session.end_text(to, self.force)? else {
            session.settle();
            return Ok(None);
        };
        tracing::debug!(answer = self.id, path, "a text goes round and is ended");
        let cost = here.saturating_sub(from);
        self.turns.back(from);
        self.turns.note(from, Closed { path, why: CloseReason::Loop });
        self.spend(session, cost);
        let end = session.ended()?.then_some(FinishReason::Length);
        Ok(Some(Added { drop: cost, tokens, sampled: 0, end }))
    }

    /// Counts tokens that are taken back. Who has taken back too many comes to an end.
    fn spend(&mut self, session: &mut Session, cost: usize) {
        self.turns.spare = self.turns.spare.saturating_sub(cost);
        if self.turns.spare == 0 {
            session.exhaust();
        }
    }

    /// What the model chooses, of what the shape admits and has not led nowhere before; `None` if
    /// that is nothing.
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
        let banned = self.turns.bans.get(&at).cloned().unwrap_or_default();
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
            // With the same luck: perhaps the model ends the value here by itself, alone or with
            // what follows.
            let own = self.sampler.clone().choose(logits, allowed).ok_or_else(no_token)?;
            if !due.begins(vocabulary.bytes(own)) {
                session.set_cut();
                if let Some(why) = why {
                    let path = session.path(due);
                    tracing::debug!(answer = self.id, path, why = why.name(), "a value is ended");
                    self.turns.note(at, Closed { path, why });
                }
            }
        }
        self.look_at_sampler(logits, fits);
        match self.sampler.choose(logits, fits) {
            None if banned.is_empty() => Err(no_token()),
            picked => Ok(picked),
        }
    }

    /// The token to go on with where everything that the model would choose leads nowhere.
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
                // Nothing else can be drawn.
                self.likelihoods = Some(Likelihoods::of_shares(logits.len(), &[(token, 1.0)], top));
            }
            return Ok(token);
        }
        session.allow_repeats();
        self.turns.bans.clear();
        self.pick(session, at, logits, vocabulary)?.ok_or_else(no_token)
    }

    /// Takes the model's choice, if there was one, and what the constraint dictates behind it; but
    /// closes the answer instead if it could not be closed any more behind them.
    ///
    /// Invariant: the answer can be closed with the tokens that are left, before and after.
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
            // A grammar that isn't JSON is cut where the tokens end, as every free text is.
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

    /// Closes an answer that is behind the first `from` tokens. An item that breaks off must not
    /// become one that is there already.
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
            if let Some(repeat) = session.repeat_behind(&escape).filter(|repeat| repeat.mark.token < from) {
                let to = repeat.mark.token;
                session.back(to)?;
                let tokens = session.closing()?.to_vec();
                if tokens.len() <= left + from - to {
                    self.turns.back(to);
                    return Ok(Outcome::Fine { from: to, tokens, sampled: 0, end, says: false });
                }
            }
        }
        Ok(Outcome::Fine { from, tokens: escape, sampled: 0, end, says: false })
    }

    /// Goes back from a repeated item to where something else can be chosen: the end of the list
    /// before it, if the list may end there; else another item, or another end of this one. `now`
    /// is the last choice, and `here` how long the answer was before this step.
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
            let known = self.turns.places.iter().find(|place| place.token == token);
            if token == now.token { Some(now.clone()) } else { known.cloned() }
        };
        let comma = at(mark);
        let begins = self.turns.places.iter().map(|place| place.token).filter(|&token| token > mark);
        let begins = begins.filter(|&token| token < now.token).min().unwrap_or(now.token);
        let other = at(begins).expect("both are known");
        let closed = Closed { path: repeat.path.clone(), why: CloseReason::RepeatedItem };
        session.back(mark.min(now.token))?;
        if let Some(comma) = comma
            && session.close_list(repeat.mark, said[0])
        {
            tracing::debug!(answer = self.id, path = closed.path, "an item is taken back, its list is ended");
            self.turns.back(mark);
            self.turns.note(mark, closed);
            self.spend(session, here.saturating_sub(mark));
            return Ok(comma);
        }
        tracing::debug!(answer = self.id, path = closed.path, "an item is taken back for another");
        let tries = self.turns.tries.entry(mark).or_default();
        *tries += 1;
        let cost = here.saturating_sub(begins);
        let again = *tries <= OTHER_ITEMS && cost <= self.turns.spare;
        let place = if again { other } else { now };
        if again {
            self.turns.spare -= cost;
        }
        for index in session.len()..place.token {
            session.accept(said[index - mark])?;
        }
        self.turns.back(place.token);
        if again || repeat.invalid {
            self.turns.ban(place.token, said[place.token - mark]);
            self.turns.note(mark, closed);
        } else {
            // The list has to go on, and the model has nothing else to say: it is valid as it is.
            session.allow_repeats();
        }
        Ok(place)
    }
}

fn no_other_item() -> EngineError {
    EngineError::Schema("no items were found that differ from each other as uniqueItems wants".to_owned())
}
