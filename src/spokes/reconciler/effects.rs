//! Executes the effects of transitions.

use tokio::sync::watch;

use super::event_loop::Reconciler;
use super::instances::{Instance, InstanceId};
use super::jobs::Task;
use crate::atomic_file;
use crate::failpoints;
use crate::spokes::folder;
use crate::spokes::life::{Effect, State};
use crate::spokes::quarantine::Refused;

impl Reconciler {
    pub(super) async fn effect(&mut self, id: InstanceId, effect: Effect, stop: &watch::Receiver<bool>) {
        let Some(life) = self.lives.get(&id) else { return };
        // Effects of an earlier state are obsolete.
        let still = match effect {
            Effect::Await => life.state == State::Seen,
            Effect::Inspect => life.state == State::Settled,
            Effect::Probe => life.state == State::Inspected,
            Effect::Judge => life.state == State::Probed,
            Effect::Load => life.state == State::Gated,
            Effect::Serve => life.state == State::Serving,
            Effect::Quarantine => matches!(life.state, State::Quarantined(_)),
            Effect::Withdraw => matches!(life.state, State::Retired(_)),
        };
        if !still {
            return;
        }
        failpoints::point(effect_name(effect), &life.name);
        match effect {
            // The folder is watched anyway.
            Effect::Await => {}
            Effect::Inspect => self.enqueue(id, Task::Inspect),
            Effect::Probe => self.enqueue(id, Task::Probe),
            Effect::Judge => self.judge(id),
            Effect::Load => self.load_life(id, stop).await,
            Effect::Serve => {
                self.serve(id);
                failpoints::point("spoke.served", &self.lives[&id].name);
                self.write_down();
                failpoints::point("spoke.swapped", &self.lives[&id].name);
            }
            Effect::Quarantine => self.quarantine(id),
            Effect::Withdraw => self.withdraw(id),
        }
    }

    /// Keeps a refused spoke with its reason. If it served, the last good generation takes its
    /// place.
    fn quarantine(&mut self, id: InstanceId) {
        let life = &self.lives[&id];
        let (State::Quarantined(why), name) = (&life.state, life.name.clone()) else { return };
        let generation = life.generation;
        let passing = why.code.is_passing();
        let pinned = life.pinned.as_deref().filter(|pinned| pinned.exists());
        // A wrong entry name or place is not the content's fault.
        if pinned.is_some() || !passing {
            let (name, entry) = (&*life.name, life.entry());
            let refused =
                Refused { name, entry, generation: generation.filter(|_| pinned.is_some()), pinned, why };
            match self.quarantine.keep(&refused) {
                Ok(kept) => {
                    tracing::info!(name, path = %kept.path.display(), "a refused spoke is kept");
                    // The file is removed only if a whole copy is kept and it will not be tried
                    // again.
                    if kept.whole && !passing {
                        self.take_out(id);
                    }
                }
                Err(error) => tracing::warn!(name = life.name, %error, "a refused spoke can't be kept"),
            }
        }
        self.sweep_due = true;
        self.withdraw(id);
        // A generation that can't serve leaves the history. One that served before it may take its
        // place.
        if let Some(generation) = generation.filter(|_| !passing)
            && self.forget_generation(&name, generation)
        {
            self.fall_back(&name);
        }
    }

    /// Removes a refused file from the folder, if the settings say so and the file hasn't changed
    /// since. If an earlier generation of the file serves, writes that content in its place,
    /// because a name without a file serves nothing.
    fn take_out(&self, id: InstanceId) {
        let life = &self.lives[&id];
        let Some(entry) = life.entry().filter(|_| self.settings.spokes.move_refused) else { return };
        let there = folder::look(&self.settings.folder, entry).ok().flatten();
        if there.is_none() || there != life.print {
            return;
        }
        let path = self.settings.folder.join(entry);
        let serves = |life: &&Instance| life.entry() == Some(entry) && life.state == State::Serving;
        let removed = match self.lives.values().find(serves).map(|life| life.pinned.clone()) {
            Some(Some(good)) if good.is_file() && path.is_file() => atomic_file::copy(&good, &path),
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

fn effect_name(effect: Effect) -> &'static str {
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
