//! Loads into the engine, and evictions to make room for them.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::inspection::aside;
use super::parts::Reconciler;
use crate::adapter::refusal::is_out_of_reach;
use crate::adapter::{Generation, inspect};
use crate::engine::{EngineError, LoadSpoke, LoadedSpoke, SpokeChange};
use crate::failpoints;
use crate::spokes::leases::Leases;
use crate::spokes::life::Reason;
use crate::spokes::reason_code::Code;

/// Outcome of a load.
pub(super) enum Load {
    Done,
    /// A request still uses a spoke that has to be evicted first.
    NoRoom,
    /// The content is at fault.
    Refused(Reason),
    /// Something else is at fault; a retry may succeed.
    Failed(Reason),
    /// The engine or the process is ending, so nothing is known about the content.
    Ended,
}

impl Reconciler {
    /// Loads a spoke after evicting those in `gone`. The database records the load while it lasts,
    /// so that a generation that crashes the process does so only once.
    pub(super) async fn load(
        &mut self,
        slot: &Leases,
        gone: &[Generation],
        stop: &watch::Receiver<bool>,
    ) -> Load {
        // Commit first what is known about the content: a successful load is recorded in that row.
        self.write_down();
        if let Err(error) = self.store.begin_loading(slot.generation, &slot.name) {
            let why =
                Reason::new(Code::NotWritten, format!("the start of its load can't be recorded: {error}"))
                    .hint("check disk space, limits and permissions of paths.state");
            tracing::error!(name = slot.name, %why, "spoke can't be loaded now");
            return Load::Failed(why);
        }
        // Evict only now: if nothing can be written, the evicted spokes could not be loaded again
        // either.
        if !self.evict(gone) {
            self.end_loading(slot, None);
            return Load::NoRoom;
        }
        failpoints::point("spoke.loading", &slot.name);
        let began = Instant::now();
        // If the engine died during the load, its record in the database stays.
        let Some(loaded) = self.engine_loads(slot, stop).await else { return Load::Ended };
        failpoints::point("spoke.loaded", &slot.name);
        let version = loaded.is_ok().then(|| self.here.version.clone());
        self.end_loading(slot, version.as_deref());
        self.registry.load_ended(began.elapsed(), loaded.is_ok());
        match loaded {
            Ok(loaded) => {
                slot.loaded(loaded.resident_bytes);
                self.examinations.prove(slot.generation);
                self.registry.set_resident(self.residency.resident_bytes());
                tracing::info!(
                    name = slot.name,
                    generation = slot.generation.short(),
                    bytes = loaded.resident_bytes,
                    ms = began.elapsed().as_millis() as u64,
                    "spoke is in memory"
                );
                Load::Done
            }
            Err(EngineError::Stopped) => Load::Ended,
            Err(error) => {
                let why = Reason::from(error);
                if self.is_to_blame(slot).await {
                    return Load::Refused(why);
                }
                tracing::warn!(name = slot.name, %why, "spoke can't be loaded now");
                let message = format!("the engine can't load it now, and could before: {why}");
                Load::Failed(Reason::new(Code::NotLoadedNow, message))
            }
        }
    }

    /// Lets the engine load a spoke. `None` if the engine died.
    async fn engine_loads(
        &self,
        slot: &Leases,
        stop: &watch::Receiver<bool>,
    ) -> Option<Result<LoadedSpoke, EngineError>> {
        let spoke = LoadSpoke {
            generation: slot.generation,
            kind: slot.facts.kind,
            path: slot.path.clone(),
            name: slot.name.clone(),
        };
        let refused = |error: std::io::Error| EngineError::Spoke(error.to_string());
        let begun = failpoints::trouble("engine.load").map_err(refused);
        let reply = match begun.and_then(|()| self.engine.spoke(SpokeChange::Load(spoke))) {
            Ok(reply) => reply,
            Err(error) => return Some(Err(error)),
        };
        let mut stop = stop.clone();
        tokio::select! {
            loaded = reply => loaded.ok(),
            _ = stop.wait_for(|stop| *stop) => Some(Err(EngineError::Stopped)),
        }
    }

    /// Whether the content is at fault for a failed load. A generation that was loaded before, by
    /// this process or by its probe, is at fault only if its copy has changed; otherwise memory or
    /// file descriptors may be short.
    async fn is_to_blame(&mut self, slot: &Leases) -> bool {
        let is_trusted = self.examinations.is_trusted(slot.generation, self.probe.is_some());
        if is_out_of_reach(&slot.path, slot.facts.resident_bytes) {
            return false;
        }
        if !is_trusted || !slot.path.is_file() {
            return true;
        }
        let Some(Ok(post)) = self.post.clone() else { return false };
        if !self.examinations.begin_inspection(slot.generation, Instant::now()) {
            return false;
        }
        let (path, limits) = (slot.path.clone(), self.settings.spokes.limits());
        let looked = aside(move || inspect(&path, Some(&post), &limits)).await;
        matches!(looked, Ok(Err(refusal)) if refusal.io().is_none())
    }

    fn end_loading(&mut self, slot: &Leases, version: Option<&str>) {
        if let Err(error) = self.store.end_loading(slot.generation, version) {
            tracing::error!(%error, name = slot.name, "the end of its load can't be recorded");
        }
    }

    /// Evicts these. Returns whether all of them could be evicted.
    fn evict(&self, gone: &[Generation]) -> bool {
        let (evicted, all) = self.residency.evict(gone);
        for slot in evicted {
            self.unload(&slot);
            self.registry.evicted();
            tracing::info!(
                name = slot.name,
                generation = slot.generation.short(),
                "spoke makes room for another"
            );
        }
        all
    }

    fn unload(&self, slot: &Arc<Leases>) {
        // The engine decides when to free the memory. A stopped engine has freed everything.
        let _ = self.engine.spoke(SpokeChange::Unload(slot.generation));
    }

    /// Unloads spokes that no name refers to and no request uses.
    pub(super) fn free_unneeded(&mut self) {
        if self.outbox.serving_has_changed() {
            // The changes are not on disk yet, so every name still has its generation.
            return;
        }
        let needed = self.needed();
        for (slot, was_resident) in self.residency.remove_unneeded(&needed) {
            if was_resident {
                self.unload(&slot);
                let generation = slot.generation.short();
                tracing::debug!(name = slot.name, generation, "spoke is out of memory");
            }
            self.copies.sweep_later();
        }
        self.registry.set_resident(self.residency.resident_bytes());
    }
}
