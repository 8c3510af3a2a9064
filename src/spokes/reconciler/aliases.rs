//! Names: which generation each name serves, which it served before, and how that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::commands::SpokeError;
use super::event_loop::Reconciler;
use super::instances::{Instance, InstanceId, Over, Source, Waiter, now, replaced};
use crate::adapter::Generation;
use crate::spokes::life::{Reason, State, Trigger};
use crate::spokes::registry::{Served, Serving};
use crate::spokes::store::Write;

/// A name that has served.
#[derive(Debug, Clone, Default)]
pub(super) struct Named {
    pub(super) id: i64,
    /// The serving generation, and its life.
    pub(super) current: Option<Generation>,
    pub(super) life: Option<InstanceId>,
    pub(super) disabled: bool,
    /// Whether it was loaded by request and not from the folder.
    pub(super) given: bool,
    /// When it lost its serving generation, in milliseconds since 1970, and the reason if known.
    pub(super) left: i64,
    pub(super) left_for: Option<Reason>,
    /// Generations that have served, including the current one, the latest last.
    pub(super) history: Vec<Generation>,
}

impl Named {
    fn before(&self) -> Vec<Generation> {
        self.history.iter().copied().filter(|generation| Some(*generation) != self.current).collect()
    }
}

impl Reconciler {
    /// Folder of the pinned copies.
    pub(super) fn staged(&self) -> PathBuf {
        self.state.path().join("spokes/staged")
    }

    /// The existing files of a generation: the pinned copy and its form for the engine.
    pub(super) fn copies(&self, generation: Generation) -> Vec<PathBuf> {
        let pinned = self.staged().join(generation.to_string());
        [pinned.clone(), served_form(&pinned)].into_iter().filter(|path| path.exists()).collect()
    }

    /// The file that the engine loads, if it exists.
    pub(super) fn served_copy(&self, generation: Generation) -> Option<PathBuf> {
        let copies = self.copies(generation);
        copies.into_iter().rev().find(|path| path.is_file())
    }

    /// The name's entry, created if missing.
    pub(super) fn named(&mut self, name: &str) -> &mut Named {
        let next = self.names.values().map(|named| named.id + 1).fold(self.first_name, i64::max);
        self.names.entry(name.to_owned()).or_insert_with(|| Named { id: next, ..Named::default() })
    }

    /// Gives its name to a life that the engine has loaded. Retires the life that had the name
    /// before.
    pub(super) fn serve(&mut self, id: InstanceId) {
        let life = self.lives.get_mut(&id).expect("what is loaded lives");
        let generation = life.generation.expect("what is loaded has a content");
        let displaces = std::mem::replace(&mut life.displaces, replaced());
        let rolled_back = match std::mem::replace(&mut life.over, Over::Any) {
            Over::Only(generation) => Some(generation),
            Over::Any | Over::Nothing => None,
        };
        let (name, seen) = (life.name.clone(), life.seen.take());
        let given = life.entry().is_none();
        let keep = self.settings.spokes.keep;

        let named = self.named(&name);
        let old = named.life.replace(id).filter(|old| *old != id);
        named.current = Some(generation);
        named.given = given;
        named.history.retain(|held| *held != generation && Some(*held) != rolled_back);
        named.history.push(generation);
        let surplus = named.history.len().saturating_sub(keep + 1);
        let dropped: Vec<Generation> = named.history.drain(..surplus).chain(rolled_back).collect();
        let number = named.id;
        let writes = self.writes.get_mut();
        let current = Some(generation);
        writes.push(Write::Current { id: number, name: name.clone(), generation: current, given, left: 0 });
        writes.extend(dropped.into_iter().map(|dropped| Write::Unhistory(name.clone(), dropped)));
        if self.rolled_back.remove(&(name.clone(), generation)).is_some() {
            // Serving the generation again lifts its rollback.
            writes.push(Write::Allowed(name.clone(), generation));
        }
        if let Some(rolled_back) = rolled_back {
            // Stored on disk, because a touched file or another version of this program must not
            // bring it back.
            writes.push(Write::RolledBack(name.clone(), rolled_back, displaces.clone()));
            self.rolled_back.insert((name.clone(), rolled_back), displaces.clone());
        }
        self.sweep_due = true;

        if let Some(old) = old {
            self.happen(old, Trigger::Withdrawn(displaces));
            let life = &self.lives[&old];
            // The life of the current file stays listed. A life of an earlier generation of that
            // file doesn't.
            if life.entry().is_none_or(|entry| self.by_entry.get(entry) != Some(&old)) {
                self.forget(old);
            }
        }
        if let Some(seen) = seen {
            self.registry.swapped(seen.elapsed());
        }
        self.names_changed = true;
        self.show(id);
    }

    /// Takes the name from a life, if it has one.
    pub(super) fn withdraw(&mut self, id: InstanceId) {
        let Some(life) = self.lives.get(&id) else { return };
        let (name, given) = (life.name.clone(), life.entry().is_none());
        let why = life.state.reason().cloned();
        let Some(named) = self.names.get_mut(&name).filter(|named| named.life == Some(id)) else { return };
        (named.current, named.life, named.left) = (None, None, now());
        named.left_for = why;
        let (number, left) = (named.id, named.left);
        self.writes.get_mut().push(Write::Current { id: number, name, generation: None, given, left });
        self.names_changed = true;
    }

    /// Replaces a life by another of the same generation. Requests notice nothing.
    pub(super) fn inherit(&mut self, id: InstanceId) {
        let name = self.lives[&id].name.clone();
        let Some(named) = self.names.get_mut(&name) else { return };
        if let Some(old) = named.life.replace(id).filter(|old| *old != id) {
            self.forget(old);
        }
        self.show(id);
    }

    /// Publishes what new requests get from now on. Retires generations that no name refers to any
    /// more.
    pub(super) fn publish(&mut self) {
        let (mut names, mut past) = (BTreeMap::new(), BTreeMap::new());
        for (name, named) in &self.names {
            let slot = named.current.and_then(|generation| self.slots.get(&generation));
            if let Some(slot) = slot.filter(|_| !named.disabled) {
                slot.revive();
                let served = Served { id: named.id, slot: Arc::clone(slot), before: named.before() };
                names.insert(name.clone(), served);
            } else {
                let why = if named.disabled { Some(disabled()) } else { named.left_for.clone() };
                past.insert(name.clone(), why);
            }
        }
        self.registry.publish(Serving { names, past });
        // Retire after publishing, so that a request refused by a retired generation finds the new
        // one.
        let needed = self.needed();
        for slot in self.slots.values().filter(|slot| !needed.contains(&slot.generation)) {
            slot.retire();
        }
    }

    /// Forgets the names that have been gone longest, and with them the generations they could go
    /// back to.
    pub(super) fn forget_names(&mut self) {
        // Before the first listing, names may have files that were not seen yet.
        if self.names.len() <= GONE || self.listed.is_none() {
            return;
        }
        let alive: BTreeSet<&str> = self.lives.values().map(|life| life.name.as_str()).collect();
        // A name that an operator disabled stays disabled, whatever file comes under it.
        let is_gone = |(name, named): &(&String, &Named)| {
            named.current.is_none() && !named.disabled && !alive.contains(name.as_str())
        };
        let mut gone: Vec<_> =
            self.names.iter().filter(is_gone).map(|(n, v)| (v.left, v.id, n.clone())).collect();
        gone.sort_unstable();
        gone.truncate(gone.len().saturating_sub(GONE));
        if let Some(last) = gone.iter().map(|(_, id, _)| *id).max() {
            self.first_name = self.first_name.max(last + 1);
            if let Err(error) = self.store.set_note(FIRST_NAME, &self.first_name.to_string()) {
                tracing::warn!(%error, "the ids of names can't be stored");
            }
        }
        for (.., name) in gone {
            self.names.remove(&name);
            self.rolled_back.retain(|(of, _), _| *of != name);
            self.writes.get_mut().push(Write::Forgotten(name));
            self.names_changed = true;
        }
    }

    /// Generations that a name refers to or that will soon get a name.
    pub(super) fn needed(&self) -> BTreeSet<Generation> {
        let named = self.names.values().filter(|named| !named.disabled).filter_map(|named| named.current);
        let soon = |life: &&Instance| matches!(life.state, State::Probed | State::Gated);
        named.chain(self.lives.values().filter(soon).filter_map(|life| life.generation)).collect()
    }

    /// Makes a generation serve again under a name under which it served before.
    pub(super) fn revive(
        &mut self,
        name: &str,
        generation: Generation,
        displaces: Reason,
        over: Over,
    ) -> Result<InstanceId, Reason> {
        let gone = || Reason::new("no_copy", format!("the copy of {} no longer exists", generation.short()));
        if let Some(why) = self.banned.get(&generation) {
            return Err(why.clone());
        }
        let known = self.known.get(&generation).cloned().ok_or_else(gone)?;
        let pinned = self.copies(generation).into_iter().next().ok_or_else(gone)?;
        let source = self.names.get(name).and_then(|named| named.life).and_then(|life| self.lives.get(&life));
        let source = source.map(|life| life.source.clone());
        let entry = self.lives.values().find(|life| life.name == name && life.entry().is_some());
        let source = source.or_else(|| entry.map(|life| life.source.clone()));
        let source = source.unwrap_or_else(|| Source::Given(pinned.clone()));
        let mut life = Instance::new(name.to_owned(), source);
        life.generation = Some(generation);
        life.facts = Some(known.facts.clone());
        life.served = self.served_copy(generation);
        life.pinned = Some(pinned);
        (life.displaces, life.over) = (displaces, over);
        let ready = life.served.is_some() && known.verdict.is_some();
        life.state = State::Retired(replaced());
        let id = self.resume(life);
        // Examined with another post or program version: examine its copy again.
        self.happen(id, if ready { Trigger::Wanted } else { Trigger::Reconsidered });
        Ok(id)
    }

    /// Removes a generation that can't serve from a name's history. Returns whether it was in
    /// there.
    pub(super) fn forget_generation(&mut self, name: &str, generation: Generation) -> bool {
        let Some(named) = self.names.get_mut(name) else { return false };
        let before = named.history.len();
        named.history.retain(|held| *held != generation);
        let was_there = named.history.len() < before;
        if was_there {
            self.writes.get_mut().push(Write::Unhistory(name.to_owned(), generation));
        }
        was_there
    }

    /// Goes back to the last good generation of a name that lost its serving one.
    pub(super) fn fall_back(&mut self, name: &str) {
        let Some(named) = self.names.get(name).filter(|named| named.current.is_none()) else { return };
        let before: Vec<Generation> = named.history.iter().rev().copied().collect();
        for generation in before {
            if self.revive(name, generation, replaced(), Over::Nothing).is_ok() {
                return;
            }
        }
    }

    /// Goes back to the generation that served before.
    pub(super) fn roll_back(&mut self, name: &str, waiter: Waiter) {
        if self.names.get(name).is_some_and(|named| named.disabled) {
            let trouble = format!("{name:?} is switched off: enable it before it can be rolled back");
            return self.answers.push((waiter, Err(SpokeError::Conflict(trouble))));
        }
        let before = self.names.get(name).map(Named::before);
        let target = before.as_ref().and_then(|before| before.last().copied());
        let outcome = match (before, target) {
            (None, _) if self.lives.values().any(|life| life.name == name) => {
                Err(SpokeError::Conflict(format!("nothing has served as {name:?} before")))
            }
            (None, _) => Err(SpokeError::NoSuch(name.to_owned())),
            (Some(_), None) => {
                Err(SpokeError::Conflict(format!("no generation of {name:?} is kept that served before")))
            }
            (Some(_), Some(target)) => {
                let given = self.names.get(name).is_some_and(|named| named.given);
                let hint = if given {
                    "to load it again serves it"
                } else {
                    "`bespoke spoke enable` serves it again"
                };
                let why = Reason::new("rolled_back", format!("rolled back to {}", target.short())).hint(hint);
                let current = self.names.get(name).and_then(|named| named.current);
                let over = current.map_or(Over::Nothing, Over::Only);
                self.revive(name, target, why, over).map_err(SpokeError::Refused)
            }
        };
        self.wait_for(outcome, waiter);
    }

    /// Enables a disabled name, or retries its latest content that doesn't serve.
    pub(super) fn enable(&mut self, name: &str, waiter: Waiter) {
        let mut of_name = self.lives.iter().rev().filter(|(_, life)| life.name == name);
        let idle = of_name.find(|(_, life)| !life.state.is_moving() && life.state != State::Serving);
        let idle = idle.map(|(id, life)| (*id, life.generation, life.state.clone()));
        let was_disabled = self.set_disabled(name, false);
        let outcome = match idle {
            // The file's name is taken or invalid, and enabling it changes nothing about that.
            Some((_, _, State::Quarantined(why))) if why.code.concerns_entry() => {
                Err(SpokeError::Refused(why))
            }
            Some((id, generation, state)) => {
                if let Some(generation) = generation {
                    self.allow(name, generation);
                }
                // Refused spokes are always inspected again. Others are, unless they are known to
                // be good with this post and program.
                let known = generation.and_then(|generation| self.known.get(&generation)?.verdict);
                let refused = matches!(state, State::Quarantined(_) | State::Waiting(_));
                let good =
                    known.is_some() && self.lives[&id].served.as_ref().is_some_and(|file| file.is_file());
                self.happen(id, if refused || good { Trigger::Wanted } else { Trigger::Reconsidered });
                Ok(id)
            }
            None if was_disabled => {
                let last = self.names.get(name).and_then(|named| named.history.last().copied());
                match last {
                    Some(last) => self.revive(name, last, replaced(), Over::Any).map_err(SpokeError::Refused),
                    None => Err(SpokeError::Conflict(format!("{name:?} has nothing to serve"))),
                }
            }
            None if self.lives.values().any(|life| life.name == name) => {
                Err(SpokeError::Conflict(format!("{name:?} is not switched off")))
            }
            None => Err(SpokeError::NoSuch(name.to_owned())),
        };
        self.wait_for(outcome, waiter);
    }

    /// Lifts the ban and the rollback that keep a generation from serving under a name.
    fn allow(&mut self, name: &str, generation: Generation) {
        let banned = self.banned.remove(&generation).is_some();
        let rolled_back = self.rolled_back.remove(&(name.to_owned(), generation)).is_some();
        if banned || rolled_back {
            self.writes.get_mut().push(Write::Allowed(name.to_owned(), generation));
        }
    }

    /// Stops serving a name.
    pub(super) fn disable(&mut self, name: &str, waiter: Waiter) {
        let of_name = |life: &&Instance| life.name == name;
        let ids: Vec<InstanceId> =
            self.lives.iter().filter(|(_, life)| of_name(life)).map(|(id, _)| *id).collect();
        if ids.is_empty() {
            self.answers.push((waiter, Err(SpokeError::NoSuch(name.to_owned()))));
            return;
        }
        self.set_disabled(name, true);
        let mut last = None;
        for id in ids {
            let state = &self.lives[&id].state;
            if state.is_open() || *state == State::Serving {
                self.happen(id, Trigger::Withdrawn(disabled()));
                self.withdraw(id);
                last = Some(id);
            }
        }
        let nothing = || SpokeError::Conflict(format!("{name:?} does not serve"));
        self.wait_for(last.ok_or_else(nothing), waiter);
    }

    /// Sets whether a name is disabled. Returns whether that changed anything.
    fn set_disabled(&mut self, name: &str, disabled: bool) -> bool {
        if self.names.get(name).map_or(!disabled, |named| named.disabled == disabled) {
            return false;
        }
        let named = self.named(name);
        named.disabled = disabled;
        let write = Write::Disabled { id: named.id, name: name.to_owned(), disabled };
        self.writes.get_mut().push(write);
        self.names_changed = true;
        true
    }

    /// Answers once a life's outcome is known, or at once if there is no life.
    pub(super) fn wait_for(&mut self, outcome: Result<InstanceId, SpokeError>, waiter: Waiter) {
        match outcome {
            Ok(id) => {
                let life = self.lives.get_mut(&id).expect("it was found a moment ago");
                life.waiters.push(waiter);
                self.answer_waiters(id);
            }
            Err(trouble) => self.answers.push((waiter, Err(trouble))),
        }
    }
}

/// Key of the note that holds the smallest id not used by any name yet.
pub(super) const FIRST_NAME: &str = "first_name";

/// Most names without a file whose generations are kept, so that `rollback` can restore what was
/// deleted by mistake.
const GONE: usize = 16;

/// Reason of a life whose name is disabled.
pub(super) fn disabled() -> Reason {
    Reason::new("disabled", "its name is disabled").hint("`bespoke spoke enable` switches it on")
}

/// Path of the engine's form of a pinned copy, if that isn't the copy itself.
pub(super) fn served_form(pinned: &std::path::Path) -> PathBuf {
    let mut name = pinned.as_os_str().to_owned();
    name.push(".gguf");
    name.into()
}
