//! Which generations are in memory, which requests and instances wait for that, and who makes room
//! for whom. The loads themselves are elsewhere.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::content::Inspected;
use super::instance::InstanceId;
use crate::adapter::Generation;
use crate::spokes::eviction::{self, Resident, Room};
use crate::spokes::leases::{Bell, Lease, Leases, Refused};
use crate::spokes::reconciler::error::SpokeError;

/// A request that waits for leases.
#[derive(Debug)]
pub struct Holding {
    pub slots: Vec<Arc<Leases>>,
    /// Whether the spokes may exceed the memory limit.
    pub beyond: bool,
    pub reply: oneshot::Sender<Result<Vec<Lease>, SpokeError>>,
}

/// What a request for leases leads to.
#[derive(Debug)]
pub enum Attempt {
    /// It gets an answer.
    Answer(Result<Vec<Lease>, SpokeError>),
    /// Other spokes have to leave first.
    Later,
    /// These have to be loaded, after those in `gone` are evicted.
    Load { absent: Vec<Arc<Leases>>, gone: Vec<Generation> },
}

/// Generations that serve or are about to, and who waits for them.
#[derive(Debug)]
pub struct Residency {
    /// Bytes of memory for all spokes together.
    limit: u64,
    bell: Arc<Bell>,
    slots: HashMap<Generation, Arc<Leases>>,
    /// In order of arrival.
    requests: VecDeque<Holding>,
    /// Instances that wait for memory.
    instances: VecDeque<InstanceId>,
    /// Generations in use that have to leave memory for the next load.
    leaving: BTreeSet<Generation>,
    /// Generations to load before the first request for them.
    preload: VecDeque<Generation>,
}

impl Residency {
    /// Starts without any. `limit` is the memory of all in bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            bell: Arc::default(),
            slots: HashMap::new(),
            requests: VecDeque::new(),
            instances: VecDeque::new(),
            leaving: BTreeSet::new(),
            preload: VecDeque::new(),
        }
    }

    /// Bytes of memory for all spokes together.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Waits until a spoke that others wait for becomes idle.
    pub async fn heard(&self) {
        self.bell.heard().await;
    }

    /// The leases of a generation, if it serves or is about to.
    pub fn slot(&self, generation: Generation) -> Option<&Arc<Leases>> {
        self.slots.get(&generation)
    }

    /// The leases of an inspected generation that may serve.
    pub fn slot_for(&mut self, name: &str, content: Inspected) -> Arc<Leases> {
        let Inspected { generation, served, facts, .. } = content;
        let bell = &self.bell;
        let new = || Leases::new(generation, name.to_owned(), facts, served, Arc::clone(bell));
        let slot = self.slots.entry(generation).or_insert_with(new);
        slot.revive();
        Arc::clone(slot)
    }

    /// Loads a restored generation before the first request for it, if there is room.
    pub fn preload(&mut self, generation: Generation) {
        self.preload.push_back(generation);
    }

    pub fn has_preload(&self) -> bool {
        !self.preload.is_empty()
    }

    /// The next to preload; `None` if it is in memory already or would have to displace another.
    pub fn next_preload(&mut self, besides: Option<Generation>) -> Option<Arc<Leases>> {
        let slot = self.slots.get(&self.preload.pop_front()?)?;
        if slot.resident().is_some() {
            return None;
        }
        let room = eviction::room(&self.residents(besides), &[], slot.facts.resident_bytes, self.limit);
        (room == Room::After(Vec::new())).then(|| Arc::clone(slot))
    }

    /// Spokes in memory that count towards the limit: all besides one.
    fn residents(&self, besides: Option<Generation>) -> Vec<Resident> {
        let counts = |resident: &Resident| Some(resident.generation) != besides;
        self.slots.values().filter_map(|slot| slot.resident()).filter(counts).collect()
    }

    /// Bytes of all spokes in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.slots.values().filter_map(|slot| slot.resident()).map(|resident| resident.bytes).sum()
    }

    /// Looks for room for a spoke that takes a name. The one that it displaces will leave anyway: for
    /// a moment both are in memory. Spokes in use that have to go get no new leases.
    pub fn room_for(
        &mut self,
        slot: &Leases,
        displaced: Option<Generation>,
        besides: Option<Generation>,
    ) -> Room {
        let mut residents = self.residents(besides);
        residents.retain(|resident| Some(resident.generation) != displaced);
        self.room(&residents, &[], slot.facts.resident_bytes)
    }

    fn room(&mut self, residents: &[Resident], kept: &[Generation], needed: u64) -> Room {
        let room = eviction::room(residents, kept, needed, self.limit);
        if let Room::Later(busy) = &room {
            self.leaving.extend(busy);
        }
        room
    }

    /// Marks these as evicted. Returns those that were in memory, and whether all are out of it.
    pub fn evict(&self, gone: &[Generation]) -> (Vec<Arc<Leases>>, bool) {
        let slots: Vec<&Arc<Leases>> =
            gone.iter().filter_map(|generation| self.slots.get(generation)).collect();
        let evicted: Vec<Arc<Leases>> = slots.iter().copied().filter(|slot| slot.evict()).cloned().collect();
        let all = evicted.len() == slots.len();
        (evicted, all)
    }

    /// Ends new leases of all generations that aren't needed.
    pub fn retire_all_but(&self, needed: &BTreeSet<Generation>) {
        for slot in self.slots.values().filter(|slot| !needed.contains(&slot.generation)) {
            slot.retire();
        }
    }

    /// Removes all generations that no name refers to and no request uses. Returns each with whether
    /// it was in memory.
    pub fn remove_unneeded(&mut self, needed: &BTreeSet<Generation>) -> Vec<(Arc<Leases>, bool)> {
        self.retire_all_but(needed);
        let over: Vec<Generation> =
            self.slots.values().filter(|slot| slot.is_over()).map(|slot| slot.generation).collect();
        let slots = over.iter().filter_map(|generation| self.slots.remove(generation));
        slots.map(|slot| (Arc::clone(&slot), slot.evict())).collect()
    }

    /// The files of all generations that serve or are about to.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.slots.values().map(|slot| &slot.path)
    }

    /// Adds a request, after those that came before.
    pub fn ask(&mut self, request: Holding) {
        self.requests.push_back(request);
    }

    /// The next request whose caller still waits.
    pub fn next_request(&mut self) -> Option<Holding> {
        loop {
            let request = self.requests.pop_front()?;
            if !request.reply.is_closed() {
                return Some(request);
            }
        }
    }

    /// Puts a request back: it stays the next.
    pub fn put_back(&mut self, request: Holding) {
        self.requests.push_front(request);
    }

    /// Lets an instance wait for memory.
    pub fn wait(&mut self, id: InstanceId) {
        self.instances.push_back(id);
    }

    /// The instances that wait for memory. They have to wait again if there is none.
    pub fn take_waiting(&mut self) -> VecDeque<InstanceId> {
        std::mem::take(&mut self.instances)
    }

    /// Begins to serve everyone that waits. The bell is set before looking for room, so that a
    /// lease that ends meanwhile rings it.
    pub fn begin_turn(&mut self) {
        self.set_bell();
        self.leaving.clear();
    }

    /// Ends that. Spokes that have to leave for the next load get no new leases until then:
    /// otherwise two spokes that are always in use would keep a third out forever.
    pub fn end_turn(&mut self) {
        for slot in self.slots.values() {
            slot.set_leaving(self.leaving.contains(&slot.generation));
        }
        self.set_bell();
    }

    fn set_bell(&self) {
        self.bell.set_wanted(!self.instances.is_empty() || !self.requests.is_empty());
    }

    /// Takes the leases of a request if all of its spokes are in memory, or tells what they need.
    pub fn hold(&mut self, request: &Holding, besides: Option<Generation>) -> Attempt {
        if request.slots.iter().any(|slot| self.leaving.contains(&slot.generation)) {
            return Attempt::Later;
        }
        // Two names may have the same generation.
        let mut slots = request.slots.clone();
        slots.sort_by_key(|slot| slot.generation);
        slots.dedup_by_key(|slot| slot.generation);
        loop {
            let absent: Vec<Arc<Leases>> =
                slots.iter().filter(|slot| slot.resident().is_none()).cloned().collect();
            // Take leases only if all are in memory. Taking and dropping one would ring the bell
            // and wake the reconciler again.
            if absent.is_empty() {
                let leases: Result<Vec<Lease>, Refused> =
                    request.slots.iter().map(Leases::lease_in_turn).collect();
                match leases {
                    Ok(leases) => return Attempt::Answer(Ok(leases)),
                    Err(Refused::Retired) => return Attempt::Answer(Err(SpokeError::Retired)),
                    Err(Refused::Absent) => continue,
                }
            }
            if slots.iter().any(|slot| slot.is_retired()) {
                return Attempt::Answer(Err(SpokeError::Retired));
            }
            let kept: Vec<Generation> = slots.iter().map(|slot| slot.generation).collect();
            let needed = absent.iter().map(|slot| slot.facts.resident_bytes).sum();
            let residents = if request.beyond { Vec::new() } else { self.residents(besides) };
            return match self.room(&residents, &kept, needed) {
                Room::Never => {
                    let there = slots.iter().filter_map(|slot| slot.resident());
                    let needed = needed + there.map(|resident| resident.bytes).sum::<u64>();
                    Attempt::Answer(Err(SpokeError::TooLarge { needed, limit: self.limit }))
                }
                Room::Later(_) => Attempt::Later,
                Room::After(gone) => Attempt::Load { absent, gone },
            };
        }
    }
}

#[cfg(test)]
mod tests;
