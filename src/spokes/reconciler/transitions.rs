//! Every transition of an instance is made here, so that none is missing in the journal, the events
//! or the rows.

use std::time::Instant;

use super::error::SpokeError;
use super::parts::Reconciler;
use super::state::instance::{Instance, InstanceId, Waiter};
use super::state::moment::Moment;
use super::state::outbox::Outbox;
use crate::spokes::life::{Reason, State, Trigger};
use crate::spokes::store::Write;

impl Reconciler {
    /// Begins an instance.
    pub(super) fn begin(&mut self, instance: Instance) -> InstanceId {
        note(&mut self.outbox, &instance, None, Moment::now());
        let id = self.instances.add_current(instance);
        self.outbox.show(id);
        id
    }

    /// Adds an instance that the journal already contains.
    pub(super) fn resume(&mut self, instance: Instance) -> InstanceId {
        let id = self.instances.add(instance);
        self.outbox.show(id);
        id
    }

    /// Forgets an instance that no row has to show any more.
    pub(super) fn forget(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.remove(id) else { return };
        self.outbox.answer_all(instance.end());
        self.outbox.show(id);
        self.copies.sweep_later();
    }

    /// Applies a trigger to an instance.
    pub(super) fn happen(&mut self, id: InstanceId, trigger: Trigger) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let now = Moment::now();
        let changed = match instance.apply(trigger, now) {
            Ok(changed) => changed,
            Err(impossible) => {
                tracing::error!(name = instance.name(), %impossible, "invalid transition of a spoke");
                return;
            }
        };
        if let Some(before) = &changed.before {
            note(&mut self.outbox, instance, Some(before), now);
            self.keep_outcome(id);
        }
        self.outbox.show(id);
        self.answer_waiters(id);
        if let Some(effect) = changed.effect {
            self.outbox.effect(id, effect);
        }
    }

    /// Refuses an instance, or postpones it if the reason says nothing about its content.
    pub(super) fn turned_down(&mut self, id: InstanceId, why: Reason) {
        if !why.code.is_transient() {
            return self.happen(id, Trigger::Refused(why));
        }
        let Some(instance) = self.instances.get_mut(id) else { return };
        let at = instance.back_off(&why.code, Moment::now());
        // The caller is told now that it failed, so a later retry must not load it unasked.
        let is_asked = instance.is_awaited();
        let is_of_the_folder = self.instances.is_current(id);
        self.happen(id, Trigger::Postponed(why));
        if is_asked && !is_of_the_folder {
            return self.forget(id);
        }
        self.instances.try_at(at, id);
    }

    /// Tries again all postponed instances that are due.
    pub(super) fn try_again(&mut self) {
        let now = Instant::now();
        while let Some(id) = self.instances.take_due(now) {
            self.happen(id, Trigger::Due);
        }
    }

    /// Stores the outcome of an entry for the next start.
    pub(super) fn keep_outcome(&mut self, id: InstanceId) {
        if let Some(outcome) = self.instances.outcome(id) {
            self.outbox.write(outcome);
        }
    }

    /// Answers once an instance's outcome is known, or at once if there is no instance.
    pub(super) fn wait_for(&mut self, outcome: Result<InstanceId, SpokeError>, waiter: Waiter) {
        match outcome {
            Ok(id) => {
                let instance = self.instances.get_mut(id).expect("it was found a moment ago");
                instance.wait(waiter);
                self.answer_waiters(id);
            }
            Err(trouble) => self.outbox.answer(waiter, Err(trouble)),
        }
    }

    fn answer_waiters(&mut self, id: InstanceId) {
        if let Some(instance) = self.instances.get_mut(id) {
            self.outbox.answer_all(instance.take_answered());
        }
    }
}

/// Writes a line of the journal and one of the log.
fn note(outbox: &mut Outbox, instance: &Instance, before: Option<&State>, now: Moment) {
    let (name, state) = (instance.name(), instance.state());
    let to = state.name();
    let generation = instance.generation().map(|generation| generation.short());
    match state {
        State::Quarantined(why) | State::Waiting(why) => {
            tracing::warn!(name, generation, code = %why.code, %why, "spoke is {to}");
        }
        _ => tracing::info!(name, generation, why = state.reason().map(|why| &*why.code), "spoke is {to}"),
    }
    outbox.write(Write::Journal(instance.line(before, now)));
}
