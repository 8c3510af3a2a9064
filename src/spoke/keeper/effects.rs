//! What is done on the way into a state.

use tokio::sync::watch;

use super::jobs::Task;
use super::lives::LifeId;
use super::turn::Keeper;
use crate::fail;
use crate::spoke::folder;
use crate::spoke::life::{Effect, State};
use crate::spoke::quarantine::{self, Refused};

impl Keeper {
    pub(super) async fn effect(&mut self, id: LifeId, effect: Effect, stop: &watch::Receiver<bool>) {
        let Some(life) = self.lives.get(&id) else { return };
        // What was to be done for an earlier state is of no use.
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
        fail::point(effect_name(effect), &life.name);
        match effect {
            // The folder is followed anyway.
            Effect::Await => {}
            Effect::Inspect => self.enqueue(id, Task::Inspect),
            Effect::Probe => self.enqueue(id, Task::Probe),
            Effect::Judge => self.enqueue(id, Task::Judge),
            Effect::Load => self.load_life(id, stop).await,
            Effect::Serve => {
                self.serve(id);
                fail::point("spoke.served", &self.lives[&id].name);
                self.write_down();
                fail::point("spoke.swapped", &self.lives[&id].name);
            }
            Effect::Quarantine => self.quarantine(id),
            Effect::Withdraw => self.withdraw(id),
        }
    }

    /// Keeps a refused content with its reason. If it served, the last good one takes its place.
    fn quarantine(&mut self, id: LifeId) {
        let life = &self.lives[&id];
        let (State::Quarantined(why), name) = (&life.state, life.name.clone()) else { return };
        if let (Some(generation), Some(pinned)) = (life.generation, &life.pinned)
            && pinned.exists()
        {
            let folder = self.state.path().join("spokes/quarantine");
            let refused = Refused { name: &life.name, entry: life.entry(), generation, pinned, why };
            match quarantine::keep(&folder, &refused, self.settings.quarantine) {
                Ok(kept) => {
                    tracing::info!(name = life.name, path = %kept.display(), "a refused spoke is kept");
                    self.take_out(id);
                }
                Err(error) => tracing::warn!(name = life.name, %error, "a refused spoke can't be kept"),
            }
        }
        self.sweep_due = true;
        if self.names.get(&name).is_some_and(|named| named.life == Some(id)) {
            self.withdraw(id);
            self.fall_back(&name);
        }
    }

    /// Removes a refused file from the folder, if that is wanted and it is still what was refused.
    fn take_out(&self, id: LifeId) {
        let life = &self.lives[&id];
        let Some(entry) = life.entry().filter(|_| self.settings.move_refused) else { return };
        if life.print.is_none() || folder::look(&self.settings.folder, entry) != life.print {
            return;
        }
        let path = self.settings.folder.join(entry);
        let removed = if path.is_dir() { fs_err::remove_dir_all(&path) } else { fs_err::remove_file(&path) };
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
