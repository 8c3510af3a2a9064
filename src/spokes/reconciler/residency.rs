//! Spokes in memory: leases for requests, loads into the engine, and evictions to make room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::aliases::disabled;
use super::commands::{Holding, SpokeError};
use super::event_loop::Reconciler;
use super::instances::InstanceId;
use super::instances::replaced;
use super::jobs::aside;
use crate::adapter::refusal::is_out_of_reach;
use crate::adapter::{Generation, inspect};
use crate::engine::{EngineError, LoadSpoke, SpokeChange};
use crate::failpoints;
use crate::spokes::eviction::{self, Resident, Room};
use crate::spokes::leases::{Lease, Leases, Refused};
use crate::spokes::life::{Reason, State, Trigger};
use crate::spokes::reason_code::Code;
use crate::spokes::store::Verdict;

/// How long the inspection of a copy that failed to load stays valid.
const LOOKED: Duration = Duration::from_secs(60);

/// Outcome of a load.
enum Load {
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
    /// The [`Leases`] of an inspected life.
    pub(super) fn slot_for(&mut self, id: InstanceId) -> Arc<Leases> {
        let life = &self.lives[&id];
        let generation = life.generation.expect("what was inspected has a content");
        let facts = life.facts.clone().expect("what was inspected has facts");
        let path = life.served.clone().expect("what was inspected has a form that is loaded");
        let slot = self.slots.entry(generation).or_insert_with(|| {
            Leases::new(generation, life.name.clone(), facts, path, Arc::clone(&self.bell))
        });
        slot.revive();
        Arc::clone(slot)
    }

    /// Spokes in memory, except one that is being judged. That one is extra, like the new spoke
    /// during a swap.
    fn residents(&self) -> Vec<Resident> {
        let beside = self.judging.as_ref().map(|judging| judging.generation);
        let serving = |generation| self.names.values().any(|named| named.current == Some(generation));
        let counts =
            |resident: &Resident| Some(resident.generation) != beside || serving(resident.generation);
        self.slots.values().filter_map(|slot| slot.resident()).filter(counts).collect()
    }

    fn tell_residents(&self) {
        let bytes = |slot: &Arc<Leases>| slot.resident().map(|resident| resident.bytes);
        self.registry.set_resident(self.slots.values().filter_map(bytes).sum());
    }

    /// Evicts these. Returns whether all of them could be evicted.
    fn evict(&self, gone: &[Generation]) -> bool {
        let mut all = true;
        for generation in gone {
            let Some(slot) = self.slots.get(generation) else { continue };
            if slot.evict() {
                self.unload(*generation);
                self.registry.evicted();
                tracing::info!(
                    name = slot.name,
                    generation = generation.short(),
                    "spoke makes room for another"
                );
            } else {
                all = false;
            }
        }
        all
    }

    fn unload(&self, generation: Generation) {
        // The engine decides when to free the memory. A stopped engine has freed everything.
        let _ = self.engine.spoke(SpokeChange::Unload(generation));
    }

    /// Unloads spokes that no name refers to and no request uses.
    pub(super) fn free_unneeded(&mut self) {
        if self.names_changed {
            // The changes are not on disk yet, so every name still has its generation.
            return;
        }
        let needed = self.needed();
        let unneeded = self.slots.values().filter(|slot| !needed.contains(&slot.generation));
        let mut over = Vec::new();
        for slot in unneeded {
            slot.retire();
            over.extend(slot.is_over().then_some(slot.generation));
        }
        for generation in over {
            if let Some(slot) = self.slots.remove(&generation)
                && slot.evict()
            {
                self.unload(generation);
                tracing::debug!(name = slot.name, generation = generation.short(), "spoke is out of memory");
            }
            self.sweep_due = true;
        }
        self.tell_residents();
    }

    /// Loads a spoke after evicting those in `gone`. The database records the load while it lasts,
    /// so that a generation that crashes the process does so only once.
    async fn load(&mut self, slot: &Leases, gone: &[Generation], stop: &watch::Receiver<bool>) -> Load {
        let generation = slot.generation;
        // Commit first what is known about the content: a successful load is recorded in that row.
        self.write_down();
        if let Err(error) = self.store.begin_loading(generation, &slot.name) {
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
        let spoke =
            LoadSpoke { generation, kind: slot.facts.kind, path: slot.path.clone(), name: slot.name.clone() };
        let began = Instant::now();
        let refused = |error: std::io::Error| EngineError::Spoke(error.to_string());
        let begun = failpoints::trouble("engine.load").map_err(refused);
        let loaded = match begun.and_then(|()| self.engine.spoke(SpokeChange::Load(spoke))) {
            Ok(reply) => {
                let mut stop = stop.clone();
                tokio::select! {
                    reply = reply => match reply {
                        Ok(loaded) => loaded,
                        // The engine died during the load, so its record in the database stays.
                        Err(_) => return Load::Ended,
                    },
                    _ = stop.wait_for(|stop| *stop) => Err(EngineError::Stopped),
                }
            }
            Err(error) => Err(error),
        };
        failpoints::point("spoke.loaded", &slot.name);
        let version = loaded.is_ok().then(|| self.here.version.clone());
        self.end_loading(slot, version.as_deref());
        self.registry.load_ended(began.elapsed(), loaded.is_ok());
        match loaded {
            Ok(loaded) => {
                slot.loaded(loaded.resident_bytes);
                self.stumbles.remove(&generation);
                if let Some(known) = self.known.get_mut(&generation) {
                    known.proven = true;
                }
                self.tell_residents();
                tracing::info!(
                    name = slot.name,
                    generation = generation.short(),
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

    /// Whether the content is at fault for a failed load. A generation that was loaded before, by
    /// this process or by its probe, is at fault only if its copy has changed; otherwise memory or
    /// file descriptors may be short.
    async fn is_to_blame(&mut self, slot: &Leases) -> bool {
        let generation = slot.generation;
        let known = self.known.get(&generation);
        let is_proven = known.is_some_and(|known| known.proven);
        let is_tried =
            self.probe.is_some() && known.is_some_and(|known| known.verdict == Some(Verdict::Differs));
        if is_out_of_reach(&slot.path, slot.facts.resident_bytes) {
            return false;
        }
        if !(is_proven || is_tried) || !slot.path.is_file() {
            return true;
        }
        let was_looked_at = self.stumbles.get(&generation).is_some_and(|looked| looked.elapsed() < LOOKED);
        let Some(Ok(post)) = self.post.clone().filter(|_| !was_looked_at) else { return false };
        self.stumbles.insert(generation, Instant::now());
        let (path, limits) = (slot.path.clone(), self.settings.spokes.limits());
        let looked = aside(move || inspect(&path, Some(&post), &limits)).await;
        matches!(looked, Ok(Err(refusal)) if refusal.io().is_none())
    }

    fn end_loading(&mut self, slot: &Leases, version: Option<&str>) {
        if let Err(error) = self.store.end_loading(slot.generation, version) {
            tracing::error!(%error, name = slot.name, "the end of its load can't be recorded");
        }
    }

    /// Loads a life that may serve.
    pub(super) async fn load_life(&mut self, id: InstanceId, stop: &watch::Receiver<bool>) {
        let name = self.lives[&id].name.clone();
        let named = self.names.get(&name);
        if named.is_some_and(|named| named.disabled) {
            return self.happen(id, Trigger::Withdrawn(disabled()));
        }
        if !self.engine_is_ready() {
            self.cramped.push_back(id);
            return;
        }
        let displaced = named.and_then(|named| named.current);
        if !self.lives[&id].over.allows(displaced) {
            self.happen(id, Trigger::Withdrawn(replaced()));
            return self.forget(id);
        }
        let slot = self.slot_for(id);
        if slot.resident().is_some() {
            return self.happen(id, Trigger::Loaded);
        }
        // The displaced spoke will leave anyway. For a moment both are in memory.
        let mut residents = self.residents();
        residents.retain(|resident| Some(resident.generation) != displaced);
        let (needed, limit) = (slot.facts.resident_bytes, self.settings.spokes.memory.as_u64());
        match eviction::room(&residents, &[], needed, limit) {
            Room::After(gone) => match self.load(&slot, &gone, stop).await {
                Load::Done => self.happen(id, Trigger::Loaded),
                Load::Refused(why) | Load::Failed(why) => self.turned_down(id, why),
                Load::NoRoom => self.cramped.push_back(id),
                Load::Ended => {}
            },
            Room::Later(busy) => {
                self.leaving.extend(busy);
                self.cramped.push_back(id);
            }
            Room::Never => {
                let why = Reason::new(
                    "too_large_together",
                    format!("it takes {needed} bytes in memory, and all spokes together may take {limit}"),
                )
                .hint("spokes.memory is the limit");
                self.happen(id, Trigger::Refused(why));
            }
        }
    }

    /// Retries the loads that had no room.
    async fn serve_cramped(&mut self, stop: &watch::Receiver<bool>) {
        for id in std::mem::take(&mut self.cramped) {
            if self.lives.get(&id).is_some_and(|life| life.state == State::Gated) {
                self.load_life(id, stop).await;
            }
        }
        while let Some((id, effect)) = self.effects.pop_front() {
            Box::pin(self.effect(id, effect, stop)).await;
        }
    }

    /// Answers requests for leases in order of arrival.
    async fn serve_holdings(&mut self, stop: &watch::Receiver<bool>) {
        while let Some(holding) = self.holdings.pop_front() {
            if holding.reply.is_closed() {
                continue;
            }
            let Some(answer) = self.hold(&holding, stop).await else {
                self.holdings.push_front(holding);
                break;
            };
            // The caller may have stopped waiting; then the leases end with the message.
            let _ = holding.reply.send(answer);
        }
    }

    /// Serves everyone that waits for memory, as far as there is room. Spokes that have to leave
    /// for the next load get no new leases until then: otherwise two spokes that are always in use
    /// would keep a third out forever.
    pub(super) async fn serve_waiting(&mut self, stop: &watch::Receiver<bool>) {
        // Set before looking for room, so that a lease that ends meanwhile rings the bell.
        self.bell.set_wanted(!self.cramped.is_empty() || !self.holdings.is_empty());
        self.leaving.clear();
        self.serve_cramped(stop).await;
        self.serve_holdings(stop).await;
        for slot in self.slots.values() {
            slot.set_leaving(self.leaving.contains(&slot.generation));
        }
        self.bell.set_wanted(!self.cramped.is_empty() || !self.holdings.is_empty());
    }

    /// Takes the leases, or returns why that is impossible. `None` if other spokes have to leave
    /// first.
    async fn hold(
        &mut self,
        holding: &Holding,
        stop: &watch::Receiver<bool>,
    ) -> Option<Result<Vec<Lease>, SpokeError>> {
        if holding.slots.iter().any(|slot| self.leaving.contains(&slot.generation)) {
            return None;
        }
        loop {
            // Two names may have the same generation.
            let mut slots = holding.slots.clone();
            slots.sort_by_key(|slot| slot.generation);
            slots.dedup_by_key(|slot| slot.generation);
            let absent: Vec<&Arc<Leases>> = slots.iter().filter(|slot| slot.resident().is_none()).collect();
            // Take leases only if all are in memory. Taking and dropping one would ring the bell
            // and wake this thread again.
            if absent.is_empty() {
                let leases: Result<Vec<Lease>, Refused> =
                    holding.slots.iter().map(Leases::lease_in_turn).collect();
                match leases {
                    Ok(leases) => return Some(Ok(leases)),
                    Err(Refused::Retired) => return Some(Err(SpokeError::Retired)),
                    Err(Refused::Absent) => continue,
                }
            }
            if slots.iter().any(|slot| slot.is_retired()) {
                return Some(Err(SpokeError::Retired));
            }
            let kept: Vec<Generation> = slots.iter().map(|slot| slot.generation).collect();
            let needed = absent.iter().map(|slot| slot.facts.resident_bytes).sum();
            let limit = self.settings.spokes.memory.as_u64();
            let residents = if holding.beyond { Vec::new() } else { self.residents() };
            let mut gone = match eviction::room(&residents, &kept, needed, limit) {
                Room::Never => {
                    let there = slots.iter().filter_map(|slot| slot.resident());
                    let needed = needed + there.map(|resident| resident.bytes).sum::<u64>();
                    return Some(Err(SpokeError::TooLarge { needed, limit }));
                }
                Room::Later(busy) => {
                    self.leaving.extend(busy);
                    return None;
                }
                Room::After(gone) => gone,
            };
            for slot in absent {
                match self.load(slot, &std::mem::take(&mut gone), stop).await {
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

    /// Refuses all lives of a generation that served but can't be loaded any more.
    fn was_refused(&mut self, generation: Generation, why: &Reason) {
        let of = |life: &&super::instances::Instance| {
            life.generation == Some(generation) && life.state == State::Serving
        };
        let lives: Vec<InstanceId> =
            self.lives.iter().filter(|(_, life)| of(life)).map(|(id, _)| *id).collect();
        for id in lives {
            self.happen(id, Trigger::Refused(why.clone()));
        }
    }

    /// Loads what served before the restart, one per turn, while there is room.
    pub(super) async fn serve_preload(&mut self, stop: &watch::Receiver<bool>) {
        let Some(generation) = self.preload.pop_front() else { return };
        let Some(slot) = self.slots.get(&generation).cloned() else { return };
        if slot.resident().is_some() {
            return;
        }
        let needed = slot.facts.resident_bytes;
        let room = eviction::room(&self.residents(), &[], needed, self.settings.spokes.memory.as_u64());
        if room != Room::After(Vec::new()) {
            return;
        }
        match self.load(&slot, &[], stop).await {
            // A request for it tries again.
            Load::Done | Load::Ended | Load::Failed(_) | Load::NoRoom => {}
            Load::Refused(why) => self.was_refused(generation, &why),
        }
    }
}
