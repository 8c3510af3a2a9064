//! Executes the effects of transitions.

use tokio::sync::watch;

use super::parts::Reconciler;
use super::state::instance::InstanceId;
use super::state::jobs::Task;
use crate::atomic_file;
use crate::failpoints;
use crate::spokes::life::{Effect, State};
use crate::spokes::quarantine::Refused;

impl Reconciler {
    pub(super) async fn effect(&mut self, id: InstanceId, effect: Effect, stop: &watch::Receiver<bool>) {
        if !self.instances.awaits(id, effect) {
            return;
        }
        failpoints::point(point(effect), self.instances[id].name());
        match effect {
            // The folder is watched anyway.
            Effect::Await => {}
            Effect::Inspect => self.enqueue(id, Task::Inspect),
            Effect::Probe => self.enqueue(id, Task::Probe),
            Effect::Judge => self.judge(id),
            Effect::Load => self.load_instance(id, stop).await,
            Effect::Serve => {
                self.serve(id);
                failpoints::point("spoke.served", self.instances[id].name());
                self.write_down();
                failpoints::point("spoke.swapped", self.instances[id].name());
            }
            Effect::Quarantine => self.quarantine(id),
            Effect::Withdraw => self.withdraw(id),
        }
    }

    /// Keeps a refused spoke with its reason. If it served, the last good generation takes its
    /// place.
    fn quarantine(&mut self, id: InstanceId) {
        let instance = &self.instances[id];
        let State::Quarantined(why) = instance.state() else { return };
        let (name, generation) = (instance.name().to_owned(), instance.generation());
        let passing = why.code.is_passing();
        let pinned = instance.content().and_then(|content| content.pinned.as_deref());
        let pinned = pinned.filter(|pinned| pinned.exists());
        // A wrong entry name or place is not the content's fault.
        if pinned.is_some() || !passing {
            let generation = generation.filter(|_| pinned.is_some());
            let refused = Refused { name: &name, entry: instance.entry(), generation, pinned, why };
            match self.quarantine.keep(&refused) {
                Ok(kept) => {
                    tracing::info!(name, path = %kept.path.display(), "a refused spoke is kept");
                    // The file is removed only if a whole copy is kept and it will not be tried
                    // again.
                    if kept.whole && !passing {
                        self.take_out(id);
                    }
                }
                Err(error) => tracing::warn!(name, %error, "a refused spoke can't be kept"),
            }
        }
        self.copies.sweep_later();
        self.withdraw(id);
        // A generation that can't serve leaves the history. One that served before it may take its
        // place.
        if let Some(generation) = generation.filter(|_| !passing)
            && self.aliases.drop_generation(&name, generation, &mut self.outbox)
        {
            self.fall_back(&name);
        }
    }

    /// Removes a refused file from the folder, if the settings say so and the file hasn't changed
    /// since. If an earlier generation of the file serves, writes that content in its place,
    /// because a name without a file serves nothing.
    fn take_out(&self, id: InstanceId) {
        let instance = &self.instances[id];
        let Some(entry) = instance.entry().filter(|_| self.settings.spokes.move_refused) else { return };
        let there = self.folder.print(entry);
        if there.is_none() || there.as_ref() != instance.print() {
            return;
        }
        let path = self.folder.path().join(entry);
        let good = self.instances.serving(entry).map(|serving| serving.content()?.pinned.as_ref());
        let removed = match good {
            Some(Some(good)) if good.is_file() && path.is_file() => atomic_file::copy(good, &path),
            // The parts of a folder can't be replaced atomically.
            Some(_) => return,
            None if path.is_dir() => fs_err::remove_dir_all(&path),
            None => fs_err::remove_file(&path),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "a refused spoke can't be taken out of its folder");
        }
    }
}

/// The failpoint before an effect.
fn point(effect: Effect) -> &'static str {
    match effect {
        Effect::Await => "spoke.await",
        Effect::Inspect => "spoke.inspect",
        Effect::Probe => "spoke.probe",
        Effect::Judge => "spoke.judge",
        Effect::Load => "spoke.load",
        Effect::Serve => "spoke.serve",
        Effect::Quarantine => "spoke.quarantine",
        Effect::Withdraw => "spoke.withdraw",
    }
}
