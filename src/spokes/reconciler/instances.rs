//! Lives: every transition is made here, so that none is missing in the journal, the events or the
//! rows.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::event_loop::Reconciler;
use super::{SpokeError, SpokeRow};
use crate::adapter::Generation;
use crate::spokes::folder::Fingerprint;
use crate::spokes::life::{Effect, Reason, State, Trigger, step};
use crate::spokes::reason_code::Code;
use crate::spokes::store::{Facts, Transition, Write};

/// Id of a life, counted up since the start.
pub(super) type InstanceId = u64;

/// Sender for the outcome of a life.
pub(super) type Waiter = oneshot::Sender<Result<SpokeRow, SpokeError>>;

/// Source of a life's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// An entry of the folder.
    Entry(String),
    /// A path from a request; it is read once.
    Given(PathBuf),
}

/// A life: one generation under one name.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) source: Source,
    /// Fingerprint of its entry when it came to rest.
    pub(super) print: Option<Fingerprint>,
    pub(super) generation: Option<Generation>,
    pub(super) facts: Option<Facts>,
    /// The pinned copy, and the file that the engine loads.
    pub(super) pinned: Option<PathBuf>,
    pub(super) served: Option<PathBuf>,
    pub(super) state: State,
    pub(super) since: SystemTime,
    /// When its file was last seen to change; `None`: the file is older than this process, or was
    /// named in a request.
    pub(super) seen: Option<Instant>,
    /// Counts the changes of the file, to discard results for an earlier generation.
    pub(super) attempt: u64,
    /// Number of consecutive postponements, the code of the last one, and the time of the next try.
    pub(super) tries: u32,
    pub(super) waits_for: Option<Code>,
    pub(super) retry: Option<(Instant, SystemTime)>,
    /// Reason given to the life that this one displaces.
    pub(super) displaces: Reason,
    /// What it may displace.
    pub(super) over: Over,
    pub(super) waiters: Vec<Waiter>,
}

/// What a generation may displace. If something else serves by then, that came later and stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// Anything.
    Any,
    /// Nothing: the name falls back to an earlier generation.
    Nothing,
    /// This generation, which is rolled back.
    Only(Generation),
}

impl Over {
    pub(super) fn allows(self, current: Option<Generation>) -> bool {
        match self {
            Self::Any => true,
            Self::Nothing => current.is_none(),
            Self::Only(generation) => current == Some(generation),
        }
    }
}

impl Instance {
    pub(super) fn new(name: String, source: Source) -> Self {
        Self {
            name,
            source,
            print: None,
            generation: None,
            facts: None,
            pinned: None,
            served: None,
            state: State::Seen,
            since: SystemTime::now(),
            seen: None,
            attempt: 0,
            tries: 0,
            waits_for: None,
            retry: None,
            displaces: replaced(),
            over: Over::Any,
            waiters: Vec::new(),
        }
    }

    /// Starts over because its file has changed; all earlier results are obsolete.
    pub(super) fn begins_anew(&mut self) {
        self.attempt += 1;
        (self.print, self.generation, self.facts) = (None, None, None);
        (self.pinned, self.served) = (None, None);
        (self.tries, self.waits_for, self.retry) = (0, None, None);
    }

    pub(super) fn entry(&self) -> Option<&str> {
        match &self.source {
            Source::Entry(entry) => Some(entry),
            Source::Given(_) => None,
        }
    }

    fn row(&self) -> SpokeRow {
        SpokeRow {
            name: self.name.clone(),
            entry: self.entry().map(str::to_owned),
            generation: self.generation,
            state: self.state.clone(),
            since: self.since,
            facts: self.facts.clone(),
            retry_at: self.retry.map(|(_, at)| at).filter(|_| matches!(self.state, State::Waiting(_))),
            slot: None,
        }
    }
}

/// Reason of a life whose name another generation got.
pub(super) fn replaced() -> Reason {
    Reason::new("replaced", "another content serves under its name")
}

/// First pause before a retry. Each further pause is twice as long, up to a limit.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The limit for expensive retries: a probe loads the post, a gate asks many questions.
const LONGEST_DEAR_PAUSE: Duration = Duration::from_secs(600);

/// The pause after this many tries in a row.
fn pause(tries: u32, code: &Code) -> Duration {
    let longest = match code {
        Code::NotProbed | Code::GateFailed | Code::NotLoadedNow => LONGEST_DEAR_PAUSE,
        _ => LONGEST_PAUSE,
    };
    FIRST_PAUSE.saturating_mul(1 << (tries.clamp(1, 16) - 1)).min(longest)
}

/// Milliseconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

impl Reconciler {
    /// Begins a life.
    pub(super) fn begin(&mut self, life: Instance) -> InstanceId {
        self.next_life += 1;
        let id = self.next_life;
        if let Source::Entry(entry) = &life.source {
            self.by_entry.insert(entry.clone(), id);
        }
        self.note(&life, None);
        self.lives.insert(id, life);
        self.show(id);
        id
    }

    /// Adds a life that the journal already contains.
    pub(super) fn resume(&mut self, life: Instance) -> InstanceId {
        self.next_life += 1;
        self.lives.insert(self.next_life, life);
        self.show(self.next_life);
        self.next_life
    }

    /// Forgets a life that no row has to show any more.
    pub(super) fn forget(&mut self, id: InstanceId) {
        let Some(life) = self.lives.remove(&id) else { return };
        if let Source::Entry(entry) = &life.source
            && self.by_entry.get(entry) == Some(&id)
        {
            self.by_entry.remove(entry);
        }
        for waiter in life.waiters {
            self.answers.push((waiter, Err(SpokeError::Gone(life.name.clone()))));
        }
        self.show(id);
        self.sweep_due = true;
    }

    /// Applies an event to a life.
    pub(super) fn happen(&mut self, id: InstanceId, event: Trigger) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        let is_withdrawn = matches!(event, Trigger::Withdrawn(_));
        let is_another_try = matches!(event, Trigger::Due);
        let (state, effect) = match step(&life.state, event) {
            Ok(next) => next,
            Err(impossible) => {
                tracing::error!(name = life.name, %impossible, "invalid transition of a spoke");
                return;
            }
        };
        // Results of work still in progress are obsolete.
        life.attempt += u64::from(is_withdrawn);
        let before = std::mem::replace(&mut life.state, state);
        // Repeated tries for the same reason are one line of the journal.
        let waits_for = match &life.state {
            State::Waiting(why) => Some(why.code.clone()),
            _ => None,
        };
        let is_known = is_another_try || (waits_for.is_some() && waits_for == life.waits_for);
        if waits_for.is_some() {
            life.waits_for = waits_for;
        } else if !life.state.is_open() {
            (life.tries, life.waits_for, life.retry) = (0, None, None);
        }
        if before != life.state && !is_known {
            life.since = SystemTime::now();
            let life = self.lives.get(&id).expect("it was there a line ago");
            self.note(life, Some(&before));
            self.keep_end(id);
        }
        self.show(id);
        self.answer_waiters(id);
        self.effects.extend(effect.map(|effect: Effect| (id, effect)));
    }

    /// Refuses a life, or postpones it if the reason says nothing about its content.
    pub(super) fn turned_down(&mut self, id: InstanceId, why: Reason) {
        if !why.code.is_transient() {
            return self.happen(id, Trigger::Refused(why));
        }
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.tries += 1;
        let pause = pause(life.tries, &why.code);
        let at = Instant::now() + pause;
        life.retry = Some((at, SystemTime::now() + pause));
        // The caller is told now that it failed, so a later retry must not load it unasked.
        let is_asked = !life.waiters.is_empty();
        let is_of_the_folder = life.entry().is_some_and(|entry| self.by_entry.get(entry) == Some(&id));
        self.happen(id, Trigger::Postponed(why));
        if is_asked && !is_of_the_folder {
            return self.forget(id);
        }
        self.retries.insert((at, id));
    }

    /// When the next postponed life is due.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Tries again all postponed lives that are due.
    pub(super) fn try_again(&mut self) {
        let now = Instant::now();
        while let Some(&(at, id)) = self.retries.first().filter(|(at, _)| *at <= now) {
            self.retries.remove(&(at, id));
            let is_due = |life: &Instance| {
                matches!(life.state, State::Waiting(_)) && life.retry.is_some_and(|(due, _)| due == at)
            };
            if self.lives.get(&id).is_some_and(is_due) {
                self.happen(id, Trigger::Due);
            }
        }
    }

    /// Writes a line of the journal.
    fn note(&self, life: &Instance, before: Option<&State>) {
        let to = life.state.name();
        let why = life.state.reason().cloned();
        let generation = life.generation.map(|generation| generation.short());
        match &why {
            Some(why) if matches!(life.state, State::Quarantined(_) | State::Waiting(_)) => {
                tracing::warn!(name = life.name, generation, code = %why.code, %why, "spoke is {to}");
            }
            _ => tracing::info!(
                name = life.name,
                generation,
                why = why.as_ref().map(|why| &*why.code),
                "spoke is {to}"
            ),
        }
        let at = now();
        self.writes.borrow_mut().push(Write::Journal(Transition {
            id: 0,
            at,
            name: life.name.clone(),
            generation: life.generation,
            from: before.map(|state| state.name().to_owned()),
            to: to.to_owned(),
            why,
        }));
    }

    /// Stores the outcome of an entry for the next start.
    pub(super) fn keep_end(&self, id: InstanceId) {
        let life = &self.lives[&id];
        let Source::Entry(entry) = &life.source else { return };
        if self.by_entry.get(entry) != Some(&id) {
            return;
        }
        if matches!(life.state, State::Waiting(_)) {
            // The next process examines it from scratch, whatever was found out before. But a life
            // that serves by this entry needs the stored file.
            if !self.of_entry(entry).into_iter().any(|id| self.lives[&id].state == State::Serving) {
                self.writes.borrow_mut().push(Write::NoFile(entry.clone()));
            }
            return;
        }
        let Some(print) = &life.print else { return };
        let passing = life.state.reason().is_some_and(|why| why.code.is_passing());
        if life.state.is_moving() || passing {
            return;
        }
        self.writes.borrow_mut().push(Write::File {
            entry: entry.clone(),
            name: life.name.clone(),
            print: print.clone(),
            generation: life.generation,
            state: life.state.clone(),
        });
    }

    /// Marks a life, so that its row is published at the end of the turn, after the commit.
    pub(super) fn show(&self, id: InstanceId) {
        self.unshown.borrow_mut().insert(id);
    }

    /// Publishes the rows that changed.
    pub(super) fn show_all(&mut self) {
        for id in std::mem::take(self.unshown.get_mut()) {
            let row = self.lives.get(&id).map(|life| {
                let slot = life.generation.filter(|_| life.state == State::Serving);
                let slot = slot.and_then(|generation| self.slots.get(&generation).cloned());
                SpokeRow { slot, ..life.row() }
            });
            self.registry.set_row(id, row);
        }
    }

    /// Answers the callers that wait for a life, once no work on it is under way.
    pub(super) fn answer_waiters(&mut self, id: InstanceId) {
        let Some(life) = self.lives.get_mut(&id).filter(|life| !life.state.is_moving()) else { return };
        let answer = match &life.state {
            State::Waiting(why) => Err(SpokeError::Postponed(why.clone())),
            State::Quarantined(why) => Err(SpokeError::Refused(why.clone())),
            _ => Ok(life.row()),
        };
        let waiters = std::mem::take(&mut life.waiters);
        self.answers.extend(waiters.into_iter().map(|waiter| (waiter, answer.clone())));
    }

    /// Lives of an entry.
    pub(super) fn of_entry(&self, entry: &str) -> Vec<InstanceId> {
        let of = |life: &&Instance| life.entry() == Some(entry);
        self.lives.iter().filter(|(_, life)| of(life)).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_that_is_higher_where_a_try_is_dear() {
        let seconds = |code: &Code| [1, 2, 3, 6, 7, 11, 100].map(|tries| pause(tries, code).as_secs());
        assert_eq!(seconds(&Code::NotCopied), [1, 2, 4, 32, 60, 60, 60]);
        assert_eq!(seconds(&Code::NotProbed), [1, 2, 4, 32, 64, 600, 600]);
    }
}
