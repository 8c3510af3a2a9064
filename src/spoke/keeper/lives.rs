//! Lives: each step of one is made here, so that none is missing in the journal, in the events or in the rows.

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::turn::Keeper;
use super::{Row, Trouble};
use crate::spoke::Generation;
use crate::spoke::folder::Fingerprint;
use crate::spoke::life::{Effect, Event, State, Why, step};
use crate::spoke::store::{Facts, Transition, Write};

/// Number of a life, counted up since the start.
pub(super) type LifeId = u64;

/// Who waits for the end of a life's way.
pub(super) type Waiter = oneshot::Sender<Result<Row, Trouble>>;

/// Where the content of a life comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// An entry of the folder.
    Entry(String),
    /// A path that somebody named; it is read once.
    Given(PathBuf),
}

/// One content under one name.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) name: String,
    pub(super) source: Source,
    /// What its entry looked like when it rested.
    pub(super) print: Option<Fingerprint>,
    pub(super) generation: Option<Generation>,
    pub(super) facts: Option<Facts>,
    /// The pinned copy, and the form of it that the engine loads.
    pub(super) pinned: Option<PathBuf>,
    pub(super) served: Option<PathBuf>,
    pub(super) state: State,
    pub(super) since: SystemTime,
    /// When its file was last seen to change; `None`: it was there before this process, or was sent for.
    pub(super) seen: Option<Instant>,
    /// Counts the changes of the file: results about an earlier one are of no use.
    pub(super) attempt: u64,
    /// What is said of the life that this one displaces.
    pub(super) displaces: Why,
    /// Over what it may serve.
    pub(super) over: Over,
    pub(super) waiters: Vec<Waiter>,
}

/// What serves under a name when another generation is to: if it isn't this any more, what serves came later, and stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// Whatever it is.
    Any,
    /// Nothing: it falls back to an earlier one.
    Nothing,
    /// This one, which is rolled back.
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

impl Life {
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
            displaces: replaced(),
            over: Over::Any,
            waiters: Vec::new(),
        }
    }

    /// Its file has become another one: what is known of the former is of no use.
    pub(super) fn begins_anew(&mut self) {
        self.attempt += 1;
        (self.print, self.generation, self.facts) = (None, None, None);
        (self.pinned, self.served) = (None, None);
    }

    pub(super) fn entry(&self) -> Option<&str> {
        match &self.source {
            Source::Entry(entry) => Some(entry),
            Source::Given(_) => None,
        }
    }

    fn row(&self) -> Row {
        Row {
            name: self.name.clone(),
            entry: self.entry().map(str::to_owned),
            generation: self.generation,
            state: self.state.clone(),
            since: self.since,
            facts: self.facts.clone(),
            slot: None,
        }
    }
}

/// What is said of a life whose name another content got.
pub(super) fn replaced() -> Why {
    Why::new("replaced", "another content serves under its name")
}

/// Reasons that lie outside of the content: after a restart it is looked at anew.
pub(super) const PASSING: [&str; 9] = [
    "bad_name",
    "gate_failed",
    "name_taken",
    "not_copied",
    "not_probed",
    "not_supported",
    "post_unreadable",
    "too_large_together",
    "too_many",
];

/// Milliseconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

impl Keeper {
    /// Begins a life.
    pub(super) fn begin(&mut self, life: Life) -> LifeId {
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

    /// A life that is no news: the journal knows it.
    pub(super) fn resume(&mut self, life: Life) -> LifeId {
        self.next_life += 1;
        self.lives.insert(self.next_life, life);
        self.show(self.next_life);
        self.next_life
    }

    /// Forgets a life: there is no more to be said about it.
    pub(super) fn forget(&mut self, id: LifeId) {
        let Some(life) = self.lives.remove(&id) else { return };
        if let Source::Entry(entry) = &life.source
            && self.by_entry.get(entry) == Some(&id)
        {
            self.by_entry.remove(entry);
        }
        for waiter in life.waiters {
            self.answers.push((waiter, Err(Trouble::Gone(life.name.clone()))));
        }
        self.show(id);
        self.sweep_due = true;
    }

    /// Something happens to a life.
    pub(super) fn happen(&mut self, id: LifeId, event: Event) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        let is_withdrawn = matches!(event, Event::Withdrawn(_));
        let (state, effect) = match step(&life.state, event) {
            Ok(next) => next,
            Err(impossible) => {
                tracing::error!(name = life.name, %impossible, "a spoke's life went wrong");
                return;
            }
        };
        // What is found out about it from here on belongs to the past.
        life.attempt += u64::from(is_withdrawn);
        let before = std::mem::replace(&mut life.state, state);
        if before != life.state {
            life.since = SystemTime::now();
            let life = self.lives.get(&id).expect("it was there a line ago");
            self.note(life, Some(&before));
            self.keep_end(id);
        }
        self.show(id);
        self.answer_waiters(id);
        self.effects.extend(effect.map(|effect: Effect| (id, effect)));
    }

    /// A line of the journal.
    fn note(&self, life: &Life, before: Option<&State>) {
        let to = life.state.name();
        let why = life.state.reason().cloned();
        let generation = life.generation.map(|generation| generation.short());
        match &why {
            Some(why) if to == "quarantined" => {
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

    /// How an entry ended, for the next start.
    pub(super) fn keep_end(&self, id: LifeId) {
        let life = &self.lives[&id];
        let (Source::Entry(entry), Some(print)) = (&life.source, &life.print) else { return };
        let passing = life.state.reason().is_some_and(|why| PASSING.contains(&&*why.code));
        if life.state.is_moving() || passing || self.by_entry.get(entry) != Some(&id) {
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

    /// A life is to be shown as it is at the end of the turn, once that is written down.
    pub(super) fn show(&self, id: LifeId) {
        self.unshown.borrow_mut().insert(id);
    }

    /// Shows what has changed.
    pub(super) fn show_all(&mut self) {
        for id in std::mem::take(self.unshown.get_mut()) {
            let row = self.lives.get(&id).map(|life| {
                let slot = life.generation.filter(|_| life.state == State::Serving);
                let slot = slot.and_then(|generation| self.slots.get(&generation).cloned());
                Row { slot, ..life.row() }
            });
            self.registry.set_row(id, row);
        }
    }

    /// Answers those who wait for a life, once nothing is under way any more.
    pub(super) fn answer_waiters(&mut self, id: LifeId) {
        let Some(life) = self.lives.get_mut(&id).filter(|life| !life.state.is_moving()) else { return };
        let answer = match &life.state {
            State::Quarantined(why) => Err(Trouble::Refused(why.clone())),
            _ => Ok(life.row()),
        };
        let waiters = std::mem::take(&mut life.waiters);
        self.answers.extend(waiters.into_iter().map(|waiter| (waiter, answer.clone())));
    }

    /// Lives of an entry.
    pub(super) fn of_entry(&self, entry: &str) -> Vec<LifeId> {
        let of = |life: &&Life| life.entry() == Some(entry);
        self.lives.iter().filter(|(_, life)| of(life)).map(|(id, _)| *id).collect()
    }
}
