//! The end of a turn: everything is committed together, and nothing is told or takes effect before
//! it is on disk.

use std::collections::BTreeSet;

use super::parts::Reconciler;
use super::state::instance::{Instance, InstanceId};
use crate::database::DatabaseError;
use crate::spokes::life::{Reason, State};
use crate::spokes::reason_code::Code;
use crate::spokes::registry::SpokeRow;

impl Reconciler {
    /// Commits all changes, then publishes them and sends the answers.
    pub(super) fn write_down(&mut self) {
        match self.outbox.commit(|writes| self.store.commit(writes, &self.here)) {
            Ok(lines) => {
                for line in lines {
                    self.registry.tell(line);
                }
            }
            // The next turn tries again. Until then names keep their generations, on disk and in
            // memory.
            Err(error) => return self.tell_unwritten(&error),
        }
        if self.registry.unwritten().is_some() {
            tracing::info!("changes of spokes are written to the database again");
            self.registry.set_unwritten(None);
        }
        if self.outbox.take_serving_change() {
            self.publish();
        }
        let rows = self.outbox.take_rows();
        self.show(rows);
        self.outbox.send_answers(None);
    }

    /// Publishes what may be said before it is on disk: why there is no progress, and what doesn't
    /// serve.
    fn tell_unwritten(&mut self, error: &DatabaseError) {
        if self.registry.unwritten().is_none() {
            tracing::error!(%error, "changes of spokes can't be written to the database");
        }
        let why = Reason::new(
            Code::NotWritten,
            format!("changes of spokes can't be written to the database: {error}"),
        )
        .hint("check disk space, limits and permissions of paths.state; it is tried again");
        self.registry.set_unwritten(Some(why.clone()));
        let instances = &self.instances;
        let rows = self.outbox.take_rows_unless(|id| {
            let state = instances.get(id).map(Instance::state);
            state.is_none_or(|state| matches!(state, State::Serving | State::Retired(_)))
        });
        self.show(rows);
        self.outbox.send_answers(Some(&why));
    }

    /// Publishes the rows of these instances.
    fn show(&self, ids: BTreeSet<InstanceId>) {
        for id in ids {
            let row = self.instances.get(id).map(|instance| {
                let generation = instance.generation().filter(|_| instance.is_serving());
                let slot = generation.and_then(|generation| self.residency.slot(generation).cloned());
                SpokeRow { slot, ..instance.row() }
            });
            self.registry.set_row(id, row);
        }
    }

    /// Publishes what new requests get from now on. Retires generations that no name refers to any
    /// more.
    fn publish(&mut self) {
        let serving = self.aliases.serving(|generation| self.residency.slot(generation).cloned());
        for served in serving.names.values() {
            served.slot.revive();
        }
        self.registry.publish(serving);
        // Retire after publishing, so that a request refused by a retired generation finds the new
        // one.
        self.residency.retire_all_but(&self.needed());
    }
}
