//! Instances get names and lose them.

use std::collections::BTreeSet;

use super::parts::Reconciler;
use super::state::aliases::Takeover;
use super::state::content::Source;
use super::state::instance::{Instance, InstanceId};
use super::state::moment::Moment;
use crate::adapter::Generation;
use crate::spokes::life::{State, Trigger};

impl Reconciler {
    /// Gives its name to an instance that the engine has loaded. Retires the instance that had the
    /// name before.
    pub(super) fn serve(&mut self, id: InstanceId) {
        let instance = self.instances.get_mut(id).expect("the caller looked it up");
        let generation = instance.generation().expect("what is loaded has a content");
        let (displaces, rolled_back) = instance.take_over();
        let age = instance.take_age(Moment::now());
        let takeover = Takeover {
            name: instance.name(),
            generation,
            instance: id,
            given: matches!(instance.source(), Source::Given(_)),
            rolled_back: rolled_back.map(|generation| (generation, displaces.clone())),
        };
        let displaced = self.aliases.serve(takeover, &mut self.outbox);
        self.copies.sweep_later();
        if let Some(displaced) = displaced {
            self.happen(displaced, Trigger::Withdrawn(displaces));
            // The instance of the current file stays listed. One of an earlier generation of that
            // file doesn't.
            if !self.instances.is_current(displaced) {
                self.forget(displaced);
            }
        }
        if let Some(age) = age {
            self.registry.swapped(age);
        }
        self.outbox.show(id);
    }

    /// Takes the name from an instance, if it has one.
    pub(super) fn withdraw(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        let why = instance.state().reason().cloned();
        self.aliases.withdraw(instance.name(), id, why, Moment::now(), &mut self.outbox);
    }

    /// Replaces an instance by another of the same generation. Requests notice nothing.
    pub(super) fn inherit(&mut self, id: InstanceId) {
        if let Some(before) = self.aliases.hand_over(self.instances[id].name(), id) {
            self.forget(before);
        }
        self.outbox.show(id);
    }

    /// Generations that a name refers to or that will soon get a name.
    pub(super) fn needed(&self) -> BTreeSet<Generation> {
        let soon = self.instances.iter().map(|(_, instance)| instance);
        let soon = soon.filter(|instance| matches!(instance.state(), State::Probed | State::Gated));
        self.aliases.in_use().chain(soon.filter_map(Instance::generation)).collect()
    }

    /// Removes copies that are no longer needed, and forgets names and examinations. Not while a
    /// task runs, because its new copy belongs to no instance yet.
    pub(super) fn sweep(&mut self) {
        if !self.copies.sweep_is_due() || self.jobs.is_running() {
            return;
        }
        self.forget_names();
        let mut paths = BTreeSet::new();
        let mut generations: BTreeSet<Generation> = self.aliases.generations().collect();
        for generation in &generations {
            paths.extend(self.copies.of(*generation));
        }
        for content in self.instances.iter().filter_map(|(_, instance)| instance.needed_content()) {
            paths.extend(content.pinned.iter().chain(&content.served).cloned());
        }
        paths.extend(self.residency.paths().cloned());
        generations.extend(self.instances.iter().filter_map(|(_, instance)| instance.generation()));
        self.examinations.retain(&generations, &mut self.outbox);
        self.copies.sweep(&paths);
    }

    fn forget_names(&mut self) {
        // Before the first listing, names may have files that were not seen yet.
        if !self.folder.was_listed() {
            return;
        }
        let alive = self.instances.iter().map(|(_, instance)| instance.name()).collect();
        if let Some(first) = self.aliases.forget_gone(&alive, &mut self.outbox)
            && let Err(error) = self.store.set_note(FIRST_NAME, &first.to_string())
        {
            tracing::warn!(%error, "the ids of names can't be stored");
        }
    }
}

/// Key of the note that holds the smallest id not used by any name yet.
pub(super) const FIRST_NAME: &str = "first_name";
