//! Instances pass their gates.

use std::sync::Arc;

use super::parts::Reconciler;
use super::state::instance::{Instance, InstanceId};
use crate::config::GateSettings;
use crate::spokes::gate;
use crate::spokes::life::{Effect, Reason, Trigger};

impl Reconciler {
    /// Passes an instance on to its gate; without a gate it passes at once.
    pub(super) fn judge(&mut self, id: InstanceId) {
        if self.gate_of(id).is_some() {
            self.jobs.await_gate(id);
        } else {
            self.happen(id, Trigger::Passes);
        }
    }

    /// Starts judging the next instance, if none is being judged.
    pub(super) fn start_judging(&mut self) {
        self.jobs.abort_obsolete(|id| self.instances.get(id).map(Instance::attempt));
        while let Some(id) = self.jobs.next_gate(|id| self.instances.awaits(id, Effect::Judge)) {
            self.ask_gate(id);
        }
    }

    /// The gate of a spoke's name, or of the task that it was trained for.
    fn gate_of(&self, id: InstanceId) -> Option<&GateSettings> {
        let instance = &self.instances[id];
        let gates = &self.settings.spokes.gates;
        gates.get(instance.name()).or_else(|| {
            let facts = instance.content()?.facts.as_ref()?;
            gates.get(facts.task.as_deref()?)
        })
    }

    fn ask_gate(&mut self, id: InstanceId) {
        let Some(gate) = self.gate_of(id).cloned() else { return };
        let slot = self.slot_for(id);
        let generation = slot.generation;
        let (spokes, questioner) = (self.spokes.clone(), Arc::clone(&self.questioner));
        self.jobs.judge((id, self.instances[id].attempt()), generation, async move {
            let held = async { spokes.hold_for_gate(slot).await.map_err(Reason::from) };
            gate::judge(&gate, questioner.as_ref(), held).await
        });
    }
}
