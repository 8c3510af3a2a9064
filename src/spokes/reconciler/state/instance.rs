//! An instance: one generation under one name, from the first sight of its file to its end. Pure:
//! the time is an argument, and the work that follows a change is returned.

use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::backoff::Backoff;
use super::content::{Content, Inspected, Over, Source, replaced};
use super::moment::Moment;
use crate::adapter::{Generation, Pinned};
use crate::spokes::folder::Fingerprint;
use crate::spokes::life::{Effect, Impossible, Reason, State, Trigger, step};
use crate::spokes::reason_code::Code;
use crate::spokes::reconciler::error::SpokeError;
use crate::spokes::registry::SpokeRow;
use crate::spokes::store::{Transition, Write};

/// Id of an instance, counted up since the start.
pub type InstanceId = u64;

/// Result of a command that is about one spoke.
pub type Answer = Result<SpokeRow, SpokeError>;

/// Sender for the outcome of an instance.
pub type Waiter = oneshot::Sender<Answer>;

/// An instance.
#[derive(Debug)]
pub struct Instance {
    name: String,
    source: Source,
    /// Fingerprint of its entry when it came to rest.
    print: Option<Fingerprint>,
    content: Option<Content>,
    state: State,
    since: SystemTime,
    /// When its file was last seen to change; `None`: the file is older than this process.
    seen: Option<Instant>,
    /// Counts the changes of the file, to discard results for an earlier generation.
    attempt: u64,
    backoff: Backoff,
    /// Reason given to the instance that this one displaces.
    displaces: Reason,
    over: Over,
    waiters: Vec<Waiter>,
}

/// What a trigger changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// The work that follows.
    pub effect: Option<Effect>,
    /// The previous state, if the journal has to learn of the change.
    pub before: Option<State>,
}

impl Instance {
    /// An instance whose file was just seen.
    pub fn new(name: impl Into<String>, source: Source, now: Moment) -> Self {
        Self {
            name: name.into(),
            source,
            print: None,
            content: None,
            state: State::Seen,
            since: now.time,
            seen: None,
            attempt: 0,
            backoff: Backoff::default(),
            displaces: replaced(),
            over: Over::Any,
            waiters: Vec::new(),
        }
    }

    /// Sets its state, for an instance that the journal already contains.
    #[must_use]
    pub fn in_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// Sets the content that is already known.
    #[must_use]
    pub fn with_content(self, content: Content) -> Self {
        Self { content: Some(content), ..self }
    }

    /// Sets the fingerprint of its resting entry.
    #[must_use]
    pub fn with_print(self, print: Option<Fingerprint>) -> Self {
        Self { print, ..self }
    }

    /// Sets what it may displace, and the reason given to that.
    #[must_use]
    pub fn displacing(self, over: Over, displaces: Reason) -> Self {
        Self { displaces, over, ..self }
    }

    /// Sets when its file was seen to change.
    #[must_use]
    pub fn seen_at(self, seen: Instant) -> Self {
        Self { seen: Some(seen), ..self }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The entry of the folder that it came from, if that is known.
    pub fn entry(&self) -> Option<&str> {
        match &self.source {
            Source::Entry(entry) => Some(entry),
            Source::Given(_) | Source::Copy(_) => None,
        }
    }

    pub fn print(&self) -> Option<&Fingerprint> {
        self.print.as_ref()
    }

    pub fn content(&self) -> Option<&Content> {
        self.content.as_ref()
    }

    pub fn generation(&self) -> Option<Generation> {
        self.content.as_ref().map(|content| content.generation)
    }

    /// The content, if it passed inspection.
    pub fn inspected(&self) -> Option<Inspected> {
        let Content { generation, pinned, served, facts } = self.content.clone()?;
        Some(Inspected { generation, pinned: pinned?, served: served?, facts: facts? })
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn is_serving(&self) -> bool {
        self.state == State::Serving
    }

    /// Whether it is refused for this reason.
    pub fn is_refused_for(&self, code: &Code) -> bool {
        matches!(&self.state, State::Quarantined(why) if why.code == *code)
    }

    /// Whether it works, or may turn out to: then no other may have its name.
    pub fn holds_name(&self) -> bool {
        !matches!(self.state, State::Quarantined(_) | State::Inert)
    }

    /// The content, if its copies have to stay. A refused one is kept elsewhere.
    pub fn needed_content(&self) -> Option<&Content> {
        self.content.as_ref().filter(|_| !matches!(self.state, State::Quarantined(_)))
    }

    /// Counts the changes of the file: a result of an earlier attempt is obsolete.
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// Whether it is tried again after a postponement.
    pub fn is_retried(&self) -> bool {
        self.backoff.tries() > 0
    }

    /// Whether it may displace what serves under its name.
    pub fn may_displace(&self, current: Option<Generation>) -> bool {
        self.over.allows(current)
    }

    /// Whether a caller waits for it.
    pub fn is_awaited(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Whether this retry, of all that were planned, is the one that counts.
    pub fn is_due(&self, at: Instant) -> bool {
        matches!(self.state, State::Waiting(_)) && self.backoff.is_due(at)
    }

    /// Its file has changed: all results are obsolete.
    pub fn restart(&mut self) {
        self.attempt += 1;
        (self.print, self.content) = (None, None);
        self.backoff.reset();
    }

    /// Its file was seen to change.
    pub fn see(&mut self, at: Instant) {
        self.seen = Some(at);
    }

    /// Its entry came to rest like this.
    pub fn rest(&mut self, print: Fingerprint) {
        self.print = Some(print);
    }

    /// The entry that it came from is known now.
    pub fn set_source(&mut self, source: Source) {
        self.source = source;
    }

    /// It was copied, but not inspected with success. What else is known of its content stays.
    pub fn copied(&mut self, copy: Pinned) {
        let (facts, served) = self.content.take().map_or((None, None), |known| (known.facts, known.served));
        let Pinned { generation, path } = copy;
        self.content = Some(Content { generation, pinned: Some(path), served, facts });
    }

    /// It passed inspection.
    pub fn passed(&mut self, Inspected { generation, pinned, served, facts }: Inspected) {
        let (pinned, served, facts) = (Some(pinned), Some(served), Some(facts));
        self.content = Some(Content { generation, pinned, served, facts });
    }

    /// Applies a trigger.
    ///
    /// # Errors
    /// It is impossible in this state, which stays.
    pub fn apply(&mut self, trigger: Trigger, now: Moment) -> Result<Changed, Impossible> {
        let is_withdrawn = matches!(trigger, Trigger::Withdrawn(_));
        let is_another_try = matches!(trigger, Trigger::Due);
        let (state, effect) = step(&self.state, trigger)?;
        // Results of work still in progress are obsolete.
        self.attempt += u64::from(is_withdrawn);
        let before = std::mem::replace(&mut self.state, state);
        let mut is_same_wait = false;
        if let State::Waiting(why) = &self.state {
            is_same_wait = self.backoff.waits_for(&why.code);
        } else if !self.state.is_open() {
            self.backoff.reset();
        }
        // Repeated tries for the same reason are one line of the journal.
        let is_known = is_another_try || is_same_wait;
        let before = (before != self.state && !is_known).then_some(before);
        if before.is_some() {
            self.since = now.time;
        }
        Ok(Changed { effect, before })
    }

    /// Plans the next try after a postponement. Returns its time.
    pub fn back_off(&mut self, code: &Code, now: Moment) -> Instant {
        self.backoff.plan(code, now)
    }

    /// Gets its name. Returns the reason for the instance that it displaces, and the generation
    /// that it rolls back.
    pub fn take_over(&mut self) -> (Reason, Option<Generation>) {
        let displaces = std::mem::replace(&mut self.displaces, replaced());
        match std::mem::replace(&mut self.over, Over::Any) {
            Over::Only(rolled_back) => (displaces, Some(rolled_back)),
            Over::Any | Over::Nothing => (displaces, None),
        }
    }

    /// How long ago its file was first seen, asked once.
    pub fn take_age(&mut self, now: Moment) -> Option<Duration> {
        self.seen.take().map(|seen| now.instant.saturating_duration_since(seen))
    }

    /// Lets a caller wait for its outcome.
    pub fn wait(&mut self, waiter: Waiter) {
        self.waiters.push(waiter);
    }

    /// The callers that wait, with their answer, once no work on it is under way.
    pub fn take_answered(&mut self) -> Vec<(Waiter, Answer)> {
        if self.state.is_moving() {
            return Vec::new();
        }
        let answer = match &self.state {
            State::Waiting(why) => Err(SpokeError::Postponed(why.clone())),
            State::Quarantined(why) => Err(SpokeError::Refused(why.clone())),
            _ => Ok(self.row()),
        };
        let waiters = std::mem::take(&mut self.waiters);
        waiters.into_iter().map(|waiter| (waiter, answer.clone())).collect()
    }

    /// Ends it. The callers that wait learn that it is gone.
    pub fn end(self) -> Vec<(Waiter, Answer)> {
        let gone = SpokeError::Gone(self.name);
        self.waiters.into_iter().map(|waiter| (waiter, Err(gone.clone()))).collect()
    }

    /// Its row, without the leases of a serving generation.
    pub fn row(&self) -> SpokeRow {
        SpokeRow {
            name: self.name.clone(),
            entry: self.entry().map(str::to_owned),
            generation: self.generation(),
            state: self.state.clone(),
            since: self.since,
            facts: self.content.as_ref().and_then(|content| content.facts.clone()),
            retry_at: self.backoff.due().filter(|_| matches!(self.state, State::Waiting(_))),
            slot: None,
        }
    }

    /// The journal's line about its state.
    pub fn line(&self, before: Option<&State>, now: Moment) -> Transition {
        Transition {
            id: 0,
            at: now.millis(),
            name: self.name.clone(),
            generation: self.generation(),
            from: before.map(|state| state.name().to_owned()),
            to: self.state.name().to_owned(),
            why: self.state.reason().cloned(),
        }
    }

    /// Its outcome as the next process reads it. `None` while that is open, or when it may be
    /// another after a restart.
    pub fn outcome(&self) -> Option<Write> {
        let print = self.print.clone()?;
        let is_passing = self.state.reason().is_some_and(|why| why.code.is_passing());
        if self.state.is_moving() || is_passing {
            return None;
        }
        Some(Write::File {
            entry: self.entry()?.to_owned(),
            name: self.name.clone(),
            print,
            generation: self.generation(),
            state: self.state.clone(),
        })
    }
}

#[cfg(test)]
pub mod tests;
