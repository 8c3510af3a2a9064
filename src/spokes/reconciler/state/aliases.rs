//! Aliases: which generation each name serves, which it served before, and which must not come back
//! under it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::instance::InstanceId;
use super::moment::Moment;
use super::outbox::Outbox;
use crate::adapter::Generation;
use crate::spokes::leases::Leases;
use crate::spokes::life::Reason;
use crate::spokes::reason_code::Code;
use crate::spokes::registry::{Served, Serving};
use crate::spokes::store::{Name, Write};

/// Most names without a file whose generations are kept, so that `rollback` can restore what was
/// deleted by mistake.
const GONE: usize = 16;

/// A name that has served.
#[derive(Debug, Default)]
pub struct Alias {
    id: i64,
    /// The serving generation, and its instance.
    current: Option<(Generation, InstanceId)>,
    disabled: bool,
    /// Whether it was loaded by request and not from the folder.
    given: bool,
    /// When it lost its serving generation, in milliseconds since 1970, and the reason if known.
    left: i64,
    left_for: Option<Reason>,
    /// Generations that have served, including the current one, the latest last.
    history: Vec<Generation>,
}

impl Alias {
    /// The serving generation.
    pub fn current(&self) -> Option<Generation> {
        self.current.map(|(generation, _)| generation)
    }

    /// The serving instance.
    pub fn instance(&self) -> Option<InstanceId> {
        self.current.map(|(_, instance)| instance)
    }

    pub fn is_disabled(&self) -> bool {
        self.disabled
    }

    /// Whether it was loaded by request and not from the folder.
    pub fn is_given(&self) -> bool {
        self.given
    }

    /// Generations that have served, including the current one, the latest last.
    pub fn history(&self) -> &[Generation] {
        &self.history
    }

    /// Generations that served before and could serve again, the latest last.
    pub fn before(&self) -> Vec<Generation> {
        self.history.iter().copied().filter(|generation| Some(*generation) != self.current()).collect()
    }
}

/// A generation that gets a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takeover<'a> {
    pub name: &'a str,
    pub generation: Generation,
    pub instance: InstanceId,
    /// Whether it was loaded by request and not from the folder.
    pub given: bool,
    /// The generation that is rolled back with it, and why that must not come back.
    pub rolled_back: Option<(Generation, Reason)>,
}

/// All names that have served.
#[derive(Debug)]
pub struct Aliases {
    /// Generations kept for each name in addition to the serving one.
    keep: usize,
    names: BTreeMap<String, Alias>,
    /// The smallest id that a new name may get.
    first_id: i64,
    /// Generations that must not serve under the name from which they were rolled back.
    rolled_back: BTreeMap<(String, Generation), Reason>,
}

impl Aliases {
    /// Starts without names. Keeps `keep` generations of each in addition to the serving one.
    pub fn new(keep: usize) -> Self {
        Self { keep, names: BTreeMap::new(), first_id: 0, rolled_back: BTreeMap::new() }
    }

    /// Restores what the last process stored. Nothing serves yet.
    pub fn restore(
        &mut self,
        first_id: i64,
        names: BTreeMap<String, Name>,
        rolled_back: BTreeMap<(String, Generation), Reason>,
    ) {
        (self.first_id, self.rolled_back) = (first_id, rolled_back);
        self.names.extend(names.into_iter().map(|(name, stored)| {
            let Name { id, current: _, disabled, given, left, left_for, history } = stored;
            (name, Alias { id, current: None, disabled, given, left, left_for, history })
        }));
    }

    /// Lets a restored name serve as it did before the start.
    pub fn resume(&mut self, name: &str, generation: Generation, instance: InstanceId) {
        if let Some(alias) = self.names.get_mut(name) {
            alias.current = Some((generation, instance));
        }
    }

    pub fn get(&self, name: &str) -> Option<&Alias> {
        self.names.get(name)
    }

    /// The serving instance of a name.
    pub fn instance(&self, name: &str) -> Option<InstanceId> {
        self.names.get(name)?.instance()
    }

    /// Whether a generation serves under any name, disabled or not.
    pub fn has_current(&self, generation: Generation) -> bool {
        self.names.values().any(|alias| alias.current() == Some(generation))
    }

    /// The generations that new requests get.
    pub fn in_use(&self) -> impl Iterator<Item = Generation> {
        self.names.values().filter(|alias| !alias.disabled).filter_map(Alias::current)
    }

    /// All generations that serve or could serve again.
    pub fn generations(&self) -> impl Iterator<Item = Generation> {
        self.names.values().flat_map(|alias| alias.history.iter().copied().chain(alias.current()))
    }

    /// What new requests get.
    pub fn serving(&self, slot: impl Fn(Generation) -> Option<Arc<Leases>>) -> Serving {
        let mut serving = Serving::default();
        for (name, alias) in &self.names {
            if let Some(slot) = alias.current().filter(|_| !alias.disabled).and_then(&slot) {
                let served = Served { id: alias.id, slot, before: alias.before() };
                serving.names.insert(name.clone(), served);
            } else {
                let why = if alias.disabled { Some(disabled()) } else { alias.left_for.clone() };
                serving.past.insert(name.clone(), why);
            }
        }
        serving
    }

    /// The name's entry, created if missing.
    fn entry(&mut self, name: &str) -> &mut Alias {
        let next = self.names.values().map(|alias| alias.id + 1).fold(self.first_id, i64::max);
        self.names.entry(name.to_owned()).or_insert_with(|| Alias { id: next, ..Alias::default() })
    }

    /// Gives a name to a generation. Returns the instance that had it before.
    pub fn serve(&mut self, takeover: Takeover<'_>, outbox: &mut Outbox) -> Option<InstanceId> {
        let Takeover { name, generation, instance, given, rolled_back } = takeover;
        let keep = self.keep;
        let gone = rolled_back.as_ref().map(|(generation, _)| *generation);
        let alias = self.entry(name);
        let displaced = alias.current.replace((generation, instance)).map(|(_, displaced)| displaced);
        alias.given = given;
        alias.history.retain(|held| *held != generation && Some(*held) != gone);
        alias.history.push(generation);
        let surplus = alias.history.len().saturating_sub(keep + 1);
        let dropped: Vec<Generation> = alias.history.drain(..surplus).chain(gone).collect();
        let id = alias.id;
        let current = Some(generation);
        outbox.write(Write::Current { id, name: name.to_owned(), generation: current, given, left: 0 });
        for dropped in dropped {
            outbox.write(Write::Unhistory(name.to_owned(), dropped));
        }
        if self.rolled_back.remove(&(name.to_owned(), generation)).is_some() {
            // Serving the generation again lifts its rollback.
            outbox.write(Write::Allowed(name.to_owned(), generation));
        }
        if let Some((gone, why)) = rolled_back {
            // Stored on disk, because a touched file or another version of this program must not
            // bring it back.
            outbox.write(Write::RolledBack(name.to_owned(), gone, why.clone()));
            self.rolled_back.insert((name.to_owned(), gone), why);
        }
        outbox.change_serving();
        displaced.filter(|displaced| *displaced != instance)
    }

    /// Takes the name from an instance, if it has one.
    pub fn withdraw(
        &mut self,
        name: &str,
        instance: InstanceId,
        why: Option<Reason>,
        now: Moment,
        outbox: &mut Outbox,
    ) {
        let Some(alias) = self.names.get_mut(name) else { return };
        if alias.instance() != Some(instance) {
            return;
        }
        (alias.current, alias.left, alias.left_for) = (None, now.millis(), why);
        let Alias { id, given, left, .. } = *alias;
        outbox.write(Write::Current { id, name: name.to_owned(), generation: None, given, left });
        outbox.change_serving();
    }

    /// Lets another instance of the same generation have the name. Returns the one that had it.
    pub fn hand_over(&mut self, name: &str, to: InstanceId) -> Option<InstanceId> {
        let (_, instance) = self.names.get_mut(name)?.current.as_mut()?;
        let before = std::mem::replace(instance, to);
        (before != to).then_some(before)
    }

    /// Removes a generation that can't serve from a name's history. Returns whether it was in
    /// there.
    pub fn drop_generation(&mut self, name: &str, generation: Generation, outbox: &mut Outbox) -> bool {
        let Some(alias) = self.names.get_mut(name) else { return false };
        let before = alias.history.len();
        alias.history.retain(|held| *held != generation);
        let was_there = alias.history.len() < before;
        if was_there {
            outbox.write(Write::Unhistory(name.to_owned(), generation));
        }
        was_there
    }

    /// Sets whether a name is disabled. Returns whether that changed anything.
    pub fn set_disabled(&mut self, name: &str, disabled: bool, outbox: &mut Outbox) -> bool {
        if self.names.get(name).map_or(!disabled, |alias| alias.disabled == disabled) {
            return false;
        }
        let alias = self.entry(name);
        alias.disabled = disabled;
        outbox.write(Write::Disabled { id: alias.id, name: name.to_owned(), disabled });
        outbox.change_serving();
        true
    }

    /// Why a generation must not serve under this name, if it was rolled back.
    pub fn rollback_of(&self, name: &str, generation: Generation) -> Option<&Reason> {
        self.rolled_back.get(&(name.to_owned(), generation))
    }

    /// Lifts a rollback. Returns whether there was one.
    pub fn lift_rollback(&mut self, name: &str, generation: Generation) -> bool {
        self.rolled_back.remove(&(name.to_owned(), generation)).is_some()
    }

    /// Forgets the names that have been gone longest, and with them the generations they could go
    /// back to; but none that is `alive`. If any is forgotten, returns the smallest id that a new
    /// name may get from now on.
    pub fn forget_gone(&mut self, alive: &BTreeSet<&str>, outbox: &mut Outbox) -> Option<i64> {
        if self.names.len() <= GONE {
            return None;
        }
        // A name that an operator disabled stays disabled, whatever file comes under it.
        let is_gone = |(name, alias): &(&String, &Alias)| {
            alias.current.is_none() && !alias.disabled && !alive.contains(name.as_str())
        };
        let gone = self.names.iter().filter(is_gone);
        let mut gone: Vec<_> = gone.map(|(name, alias)| (alias.left, alias.id, name.clone())).collect();
        gone.sort_unstable();
        gone.truncate(gone.len().saturating_sub(GONE));
        let last = gone.iter().map(|(_, id, _)| *id).max()?;
        self.first_id = self.first_id.max(last + 1);
        for (.., name) in gone {
            self.names.remove(&name);
            self.rolled_back.retain(|(of, _), _| *of != name);
            outbox.write(Write::Forgotten(name));
        }
        outbox.change_serving();
        Some(self.first_id)
    }
}

/// Reason of an instance whose name is disabled.
pub fn disabled() -> Reason {
    Reason::new(Code::Disabled, "its name is disabled").hint("`bespoke spoke enable` switches it on")
}

#[cfg(test)]
mod tests;
