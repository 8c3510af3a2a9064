//! All instances: by id, by the entry that they came from, and by the time of their next try.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Index;
use std::time::Instant;

use super::content::Source;
use super::instance::{Instance, InstanceId};
use crate::spokes::life::{Effect, State};
use crate::spokes::store::Write;

/// All instances.
#[derive(Debug, Default)]
pub struct Instances {
    all: BTreeMap<InstanceId, Instance>,
    last: InstanceId,
    /// The instance of each entry's current content.
    by_entry: HashMap<String, InstanceId>,
    /// Postponed instances, by the time of their next try.
    retries: BTreeSet<(Instant, InstanceId)>,
}

impl Index<InstanceId> for Instances {
    type Output = Instance;

    fn index(&self, id: InstanceId) -> &Instance {
        &self.all[&id]
    }
}

impl Instances {
    /// Adds an instance.
    pub fn add(&mut self, instance: Instance) -> InstanceId {
        self.last += 1;
        self.all.insert(self.last, instance);
        self.last
    }

    /// Adds the instance of its entry's current content.
    pub fn add_current(&mut self, instance: Instance) -> InstanceId {
        let id = self.add(instance);
        self.make_current(id);
        id
    }

    /// Sets that an instance is that of its entry's current content.
    pub fn make_current(&mut self, id: InstanceId) {
        if let Some(entry) = self.all[&id].entry() {
            self.by_entry.insert(entry.to_owned(), id);
        }
    }

    /// Removes an instance.
    pub fn remove(&mut self, id: InstanceId) -> Option<Instance> {
        let instance = self.all.remove(&id)?;
        if let Some(entry) = instance.entry()
            && self.by_entry.get(entry) == Some(&id)
        {
            self.by_entry.remove(entry);
        }
        Some(instance)
    }

    pub fn get(&self, id: InstanceId) -> Option<&Instance> {
        self.all.get(&id)
    }

    pub fn get_mut(&mut self, id: InstanceId) -> Option<&mut Instance> {
        self.all.get_mut(&id)
    }

    /// All of them, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (InstanceId, &Instance)> {
        self.all.iter().map(|(id, instance)| (*id, instance))
    }

    /// The ids of those for which this holds, the oldest first.
    pub fn ids(&self, is: impl Fn(&Instance) -> bool) -> Vec<InstanceId> {
        self.iter().filter(|(_, instance)| is(instance)).map(|(id, _)| id).collect()
    }

    /// Those with this name, the oldest first.
    pub fn named(&self, name: &str) -> impl DoubleEndedIterator<Item = (InstanceId, &Instance)> {
        self.iter().filter(move |(_, instance)| instance.name() == name)
    }

    /// The source of the oldest instance with this name that came from an entry.
    pub fn entry_source(&self, name: &str) -> Option<&Source> {
        self.named(name).find(|(_, instance)| instance.entry().is_some()).map(|(_, found)| found.source())
    }

    /// The instance that has a name and is not this entry's. One that doesn't work must not keep
    /// its name from one that does.
    pub fn holder(&self, name: &str, besides: &str) -> Option<&Instance> {
        let mut others = self.named(name).filter(|(_, instance)| instance.entry() != Some(besides));
        others.find(|(_, instance)| instance.holds_name()).map(|(_, instance)| instance)
    }

    /// Whether the effect of its last transition still belongs to its state.
    pub fn awaits(&self, id: InstanceId, effect: Effect) -> bool {
        self.all.get(&id).is_some_and(|instance| effect.follows_from(instance.state()))
    }

    /// Those of an entry: of its current content, and of an earlier one that serves until then.
    pub fn of_entry(&self, entry: &str) -> Vec<InstanceId> {
        self.ids(|instance| instance.entry() == Some(entry))
    }

    /// The one of an entry that serves.
    pub fn serving(&self, entry: &str) -> Option<&Instance> {
        self.all.values().find(|instance| instance.entry() == Some(entry) && instance.is_serving())
    }

    /// The one of an entry's current content.
    pub fn current(&self, entry: &str) -> Option<InstanceId> {
        self.by_entry.get(entry).copied()
    }

    /// Whether it is the one of its entry's current content.
    pub fn is_current(&self, id: InstanceId) -> bool {
        let entry = self.all.get(&id).and_then(Instance::entry);
        entry.is_some_and(|entry| self.by_entry.get(entry) == Some(&id))
    }

    /// Those whose entry has to be found in the first listing of the folder.
    pub fn orphans(&self) -> Vec<InstanceId> {
        self.ids(|instance| matches!(instance.source(), Source::Copy(_)))
    }

    /// What the next process has to know of an entry whose current instance this is.
    pub fn outcome(&self, id: InstanceId) -> Option<Write> {
        let instance = self.all.get(&id).filter(|_| self.is_current(id))?;
        let entry = instance.entry()?;
        if !matches!(instance.state(), State::Waiting(_)) {
            return instance.outcome();
        }
        // The next process examines it from scratch, whatever was found out before. But an instance
        // that serves by this entry needs the stored file.
        self.serving(entry).is_none().then(|| Write::NoFile(entry.to_owned()))
    }

    /// Tries an instance again at this time.
    pub fn try_at(&mut self, at: Instant, id: InstanceId) {
        self.retries.insert((at, id));
    }

    /// When the next postponed instance is due.
    pub fn next_try(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// The next postponed instance that is due. Tries that were planned before its state changed
    /// are dropped.
    pub fn take_due(&mut self, now: Instant) -> Option<InstanceId> {
        while let Some(&(at, id)) = self.retries.first().filter(|(at, _)| *at <= now) {
            self.retries.remove(&(at, id));
            if self.all.get(&id).is_some_and(|instance| instance.is_due(at)) {
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance::tests::dropped;
    use super::super::moment::Moment;
    use super::*;
    use crate::spokes::folder::Fingerprint;
    use crate::spokes::life::{Reason, Trigger};
    use crate::spokes::reason_code::Code;
    use std::time::Duration;

    fn waiting() -> State {
        State::Waiting(Reason::new(Code::NotRead, "can't be read"))
    }

    fn refused() -> State {
        State::Quarantined(Reason::new(Code::NotFinite, "not finite"))
    }

    #[test]
    fn an_entry_leads_to_its_current_content_until_that_is_removed() {
        let mut instances = Instances::default();
        let old = instances.add_current(dropped("a", "a.gguf", State::Serving));
        let new = instances.add_current(dropped("a", "a.gguf", State::Seen));
        assert_eq!((instances.current("a.gguf"), instances.of_entry("a.gguf")), (Some(new), vec![old, new]));
        assert!(instances.is_current(new) && !instances.is_current(old));
        instances.remove(old).unwrap();
        assert_eq!(instances.current("a.gguf"), Some(new));
        instances.remove(new).unwrap();
        assert_eq!((instances.current("a.gguf"), instances.is_current(new)), (None, false));
        assert!(instances.remove(new).is_none());
        // Ids are not used again.
        assert!(instances.add(dropped("a", "a.gguf", State::Seen)) > new);
        assert_eq!(instances.current("a.gguf"), None);
    }

    #[test]
    fn a_name_is_held_by_what_works_or_may_turn_out_to() {
        let mut instances = Instances::default();
        instances.add(dropped("a", "a.zip", refused()));
        instances.add(dropped("a", "a.pt", State::Inert));
        instances.add(dropped("a", "a.gguf", State::Seen));
        instances.add(dropped("b", "b.gguf", State::Serving));
        let holder = |name, besides| instances.holder(name, besides).and_then(Instance::entry);
        assert_eq!(holder("a", "a.zip"), Some("a.gguf"));
        assert_eq!(holder("a", "a.gguf"), None);
        assert_eq!(holder("b", "a.gguf"), Some("b.gguf"));
    }

    #[test]
    fn retries_come_in_order_and_only_the_last_planned_counts() {
        let now = Moment::now();
        let mut instances = Instances::default();
        let mut postponed = |name: &str| {
            let mut instance = dropped(name, name, State::Settled);
            let at = instance.back_off(&Code::NotRead, now);
            instance.apply(Trigger::Postponed(Reason::new(Code::NotRead, "m")), now).unwrap();
            let id = instances.add(instance);
            instances.try_at(at, id);
            id
        };
        let [one, two, gone] = ["one", "two", "gone"].map(&mut postponed);
        instances.remove(gone);
        // The second is postponed once more before its first try.
        let second = instances.get_mut(two).unwrap().back_off(&Code::NotRead, now);
        instances.try_at(second, two);
        let at = |seconds| now.instant + Duration::from_secs(seconds);
        assert_eq!((instances.next_try(), instances.take_due(now.instant)), (Some(at(1)), None));
        assert_eq!((instances.take_due(at(1)), instances.take_due(at(1))), (Some(one), None));
        assert_eq!((instances.next_try(), instances.take_due(at(2))), (Some(at(2)), Some(two)));
        assert_eq!(instances.next_try(), None);
    }

    #[test]
    fn what_waits_is_examined_anew_by_the_next_process_unless_it_serves() {
        let mut instances = Instances::default();
        let print = || Some(Fingerprint::default());
        let alone = instances.add_current(dropped("a", "a.gguf", waiting()).with_print(print()));
        assert_eq!(instances.outcome(alone), Some(Write::NoFile("a.gguf".to_owned())));
        let old = instances.add_current(dropped("b", "b.gguf", State::Serving).with_print(print()));
        assert!(matches!(instances.outcome(old), Some(Write::File { state: State::Serving, .. })));
        let new = instances.add_current(dropped("b", "b.gguf", waiting()).with_print(print()));
        assert_eq!((instances.outcome(new), instances.outcome(old)), (None, None));
    }
}
