//! Instances and requests that wait for memory are served in their order.

use std::sync::Arc;

use tokio::sync::watch;

use super::error::SpokeError;
use super::loading::Load;
use super::parts::Reconciler;
use super::state::aliases::{Alias, disabled};
use super::state::content::replaced;
use super::state::instance::InstanceId;
use super::state::residency::{Attempt, Holding};
use crate::adapter::Generation;
use crate::spokes::eviction::Room;
use crate::spokes::leases::{Lease, Leases};
use crate::spokes::life::{Effect, Reason, Trigger};
use crate::spokes::reason_code::Code;

impl Reconciler {
    /// The [`Leases`] of an inspected instance.
    pub(super) fn slot_for(&mut self, id: InstanceId) -> Arc<Leases> {
        let instance = &self.instances[id];
        let content = instance.inspected().expect("only what passed inspection may serve");
        self.residency.slot_for(instance.name(), content)
    }

    /// The generation that is being judged doesn't count towards the memory limit, unless it serves:
    /// it is extra, like the new spoke during a swap.
    fn extra(&self) -> Option<Generation> {
        self.jobs.judged().filter(|generation| !self.aliases.has_current(*generation))
    }

    /// Loads an instance that may serve.
    pub(super) async fn load_instance(&mut self, id: InstanceId, stop: &watch::Receiver<bool>) {
        let instance = &self.instances[id];
        let alias = self.aliases.get(instance.name());
        if alias.is_some_and(Alias::is_disabled) {
            return self.happen(id, Trigger::Withdrawn(disabled()));
        }
        if !self.engine_is_ready() {
            return self.residency.wait(id);
        }
        let displaced = alias.and_then(Alias::current);
        if !instance.may_displace(displaced) {
            self.happen(id, Trigger::Withdrawn(replaced()));
            return self.forget(id);
        }
        let slot = self.slot_for(id);
        if slot.resident().is_some() {
            return self.happen(id, Trigger::Loaded);
        }
        let extra = self.extra();
        match self.residency.room_for(&slot, displaced, extra) {
            Room::After(gone) => match self.load(&slot, &gone, stop).await {
                Load::Done => self.happen(id, Trigger::Loaded),
                Load::Refused(why) | Load::Failed(why) => self.turned_down(id, why),
                Load::NoRoom => self.residency.wait(id),
                Load::Ended => {}
            },
            Room::Later(_) => self.residency.wait(id),
            Room::Never => {
                let (needed, limit) = (slot.facts.resident_bytes, self.residency.limit());
                let message =
                    format!("it takes {needed} bytes in memory, and all spokes together may take {limit}");
                let why = Reason::new(Code::TooLargeTogether, message).hint("spokes.memory is the limit");
                self.happen(id, Trigger::Refused(why));
            }
        }
    }

    /// Serves everyone that waits for memory, as far as there is room.
    pub(super) async fn serve_waiting(&mut self, stop: &watch::Receiver<bool>) {
        self.residency.begin_turn();
        self.serve_instances(stop).await;
        self.serve_requests(stop).await;
        self.residency.end_turn();
    }

    /// Retries the loads that had no room.
    async fn serve_instances(&mut self, stop: &watch::Receiver<bool>) {
        for id in self.residency.take_waiting() {
            if self.instances.awaits(id, Effect::Load) {
                self.load_instance(id, stop).await;
            }
        }
        while let Some((id, effect)) = self.outbox.next_effect() {
            Box::pin(self.effect(id, effect, stop)).await;
        }
    }

    /// Answers requests for leases in order of arrival.
    async fn serve_requests(&mut self, stop: &watch::Receiver<bool>) {
        while let Some(request) = self.residency.next_request() {
            let Some(answer) = self.hold(&request, stop).await else {
                return self.residency.put_back(request);
            };
            // The caller may have stopped waiting; then the leases end with the message.
            let _ = request.reply.send(answer);
        }
    }

    /// Takes the leases, or returns why that is impossible. `None` if other spokes have to leave
    /// first.
    async fn hold(
        &mut self,
        request: &Holding,
        stop: &watch::Receiver<bool>,
    ) -> Option<Result<Vec<Lease>, SpokeError>> {
        loop {
            let extra = self.extra();
            let (absent, mut gone) = match self.residency.hold(request, extra) {
                Attempt::Answer(answer) => return Some(answer),
                Attempt::Later => return None,
                Attempt::Load { absent, gone } => (absent, gone),
            };
            for slot in absent {
                match self.load(&slot, &std::mem::take(&mut gone), stop).await {
                    Load::Done => {}
                    Load::NoRoom => break,
                    Load::Ended => return Some(Err(SpokeError::Stopped)),
                    Load::Failed(why) => return Some(Err(SpokeError::Postponed(why))),
                    Load::Refused(why) => {
                        self.was_refused(slot.generation, &why);
                        return Some(Err(SpokeError::Refused(why)));
                    }
                }
            }
        }
    }

    /// Refuses all instances of a generation that served but can't be loaded any more.
    fn was_refused(&mut self, generation: Generation, why: &Reason) {
        let ids = self.instances.ids(|found| found.generation() == Some(generation) && found.is_serving());
        for id in ids {
            self.happen(id, Trigger::Refused(why.clone()));
        }
    }

    /// Loads what served before the restart, one per turn, while there is room.
    pub(super) async fn serve_preload(&mut self, stop: &watch::Receiver<bool>) {
        let extra = self.extra();
        let Some(slot) = self.residency.next_preload(extra) else { return };
        match self.load(&slot, &[], stop).await {
            // A request for it tries again.
            Load::Done | Load::Ended | Load::Failed(_) | Load::NoRoom => {}
            Load::Refused(why) => self.was_refused(slot.generation, &why),
        }
    }
}
