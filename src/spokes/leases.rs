//! One generation that serves: whether it is in memory, who runs with it, and when it may go.
//!
//! Everything about it is decided under its own lock, so a request that takes a lease and a swap that takes the spoke
//! away can't miss each other: either the request has the old generation and keeps it, or it asks for the new one.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::Notify;

use super::eviction::Resident;
use super::store::Facts;
use crate::adapter::Generation;

/// A generation under the name that it was first served under.
#[derive(Debug)]
pub struct Leases {
    /// Which content.
    pub generation: Generation,
    /// For logs.
    pub name: String,
    /// What it is.
    pub facts: Facts,
    /// The pinned file, in the form that the engine loads.
    pub path: PathBuf,
    inner: Mutex<Inner>,
    bell: Arc<Bell>,
}

/// Rung when the last lease of a spoke ends, if that matters to anybody: most ends of requests don't.
#[derive(Debug, Default)]
pub struct Bell {
    wanted: AtomicBool,
    rung: Notify,
}

impl Bell {
    /// Whether somebody waits for any spoke to become idle.
    pub fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::SeqCst);
    }

    /// Waits until it is rung.
    pub async fn heard(&self) {
        self.rung.notified().await;
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Bytes, if it is in memory.
    resident: Option<u64>,
    leases: u32,
    /// Whether no name has it any more.
    retired: bool,
    /// Whether another waits for its room.
    leaving: bool,
    uses: u64,
    last_used: Option<SystemTime>,
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It isn't in memory, or has to leave it: to be asked of the keeper, who knows whose turn it is.
    Absent,
    /// No name has it any more.
    Retired,
}

impl Leases {
    /// One that isn't in memory.
    pub fn new(
        generation: Generation,
        name: String,
        facts: Facts,
        path: PathBuf,
        bell: Arc<Bell>,
    ) -> Arc<Self> {
        Arc::new(Self { generation, name, facts, path, inner: Mutex::default(), bell })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps it in memory for a request.
    ///
    /// # Errors
    /// It isn't there, has to leave, or isn't to be had any more.
    pub fn lease(self: &Arc<Self>) -> Result<Lease, Refused> {
        self.lease_if(|inner| !inner.leaving)
    }

    /// The same for whoever's turn it is.
    ///
    /// # Errors
    /// It isn't there, or isn't to be had any more.
    pub(super) fn lease_in_turn(self: &Arc<Self>) -> Result<Lease, Refused> {
        self.lease_if(|_| true)
    }

    fn lease_if(self: &Arc<Self>, may: impl FnOnce(&Inner) -> bool) -> Result<Lease, Refused> {
        let mut inner = self.lock();
        if inner.retired {
            return Err(Refused::Retired);
        }
        if inner.resident.is_none() || !may(&inner) {
            return Err(Refused::Absent);
        }
        inner.leases += 1;
        inner.uses += 1;
        inner.last_used = Some(SystemTime::now());
        Ok(Lease { slot: Arc::clone(self) })
    }

    /// It is in memory now.
    pub fn loaded(&self, bytes: u64) {
        self.lock().resident = Some(bytes);
    }

    /// Takes it out of memory if no request runs with it; whether it was there and isn't any more.
    pub fn evict(&self) -> bool {
        let mut inner = self.lock();
        inner.leases == 0 && inner.resident.take().is_some()
    }

    /// Whether another waits for its room: new leases wait behind that one, or it would never come to its end.
    pub(super) fn set_leaving(&self, leaving: bool) {
        self.lock().leaving = leaving;
    }

    /// No name has it any more: no new leases.
    pub fn retire(&self) {
        self.lock().retired = true;
    }

    /// Whether no name has it any more.
    pub(super) fn is_retired(&self) -> bool {
        self.lock().retired
    }

    /// A name has it again.
    pub fn revive(&self) {
        self.lock().retired = false;
    }

    /// Whether no name has it and no request runs with it.
    pub fn is_over(&self) -> bool {
        let inner = self.lock();
        inner.retired && inner.leases == 0
    }

    /// What it takes in memory, if it is there.
    pub fn resident(&self) -> Option<Resident> {
        let inner = self.lock();
        let bytes = inner.resident?;
        let idle = inner.leases == 0;
        Some(Resident { generation: self.generation, bytes, idle, last_used: inner.last_used })
    }

    /// How often requests took it since the start, and when the last did.
    pub fn uses(&self) -> (u64, Option<SystemTime>) {
        let inner = self.lock();
        (inner.uses, inner.last_used)
    }
}

/// A request's hold on a spoke: it stays in memory, unchanged, until this is dropped.
#[derive(Debug)]
pub struct Lease {
    slot: Arc<Leases>,
}

impl Lease {
    /// What is held.
    pub fn slot(&self) -> &Arc<Leases> {
        &self.slot
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut inner = self.slot.lock();
        inner.leases -= 1;
        let last = inner.leases == 0;
        let matters = inner.retired || self.slot.bell.wanted.load(Ordering::SeqCst);
        drop(inner);
        if last && matters {
            self.slot.bell.rung.notify_one();
        }
    }
}

#[cfg(test)]
pub(in crate::spokes) mod tests {
    use super::*;
    use crate::adapter::Kind;

    /// A slot for tests.
    pub fn slot(text: &str, kind: Kind) -> Arc<Leases> {
        let generation = Generation::of_reader(text.as_bytes()).unwrap();
        let facts = Facts { kind, rank: 8, bytes: 10, resident_bytes: 10, layers: 1, task: None };
        Leases::new(generation, text.to_owned(), facts, PathBuf::from(text), Arc::default())
    }

    #[test]
    fn a_lease_keeps_what_it_has_until_it_ends() {
        let slot = slot("a", Kind::Lora);
        assert_eq!(slot.lease().unwrap_err(), Refused::Absent);
        slot.loaded(7);
        let (one, two) = (slot.lease().unwrap(), slot.lease().unwrap());
        assert!(!slot.evict());
        slot.retire();
        assert_eq!(slot.lease().unwrap_err(), Refused::Retired);
        drop(one);
        assert!(!slot.is_over() && !slot.evict() && !slot.resident().unwrap().idle);
        drop(two);
        assert!(slot.is_over() && slot.evict() && !slot.evict());
        slot.revive();
        assert_eq!((slot.lease().unwrap_err(), slot.uses().0), (Refused::Absent, 2));
    }

    #[test]
    fn one_whose_room_another_waits_for_takes_no_new_leases() {
        let slot = slot("a", Kind::Lora);
        slot.loaded(7);
        let held = slot.lease().unwrap();
        slot.set_leaving(true);
        assert_eq!(slot.lease().unwrap_err(), Refused::Absent);
        drop((held, slot.lease_in_turn().unwrap()));
        assert!(slot.evict());
        assert_eq!(slot.lease_in_turn().unwrap_err(), Refused::Absent);
        slot.loaded(7);
        slot.set_leaving(false);
        slot.lease().unwrap();
    }

    #[tokio::test]
    async fn the_bell_rings_when_the_last_lease_ends_and_somebody_cares() {
        let slot = slot("a", Kind::Lora);
        slot.loaded(7);
        let bell = Arc::clone(&slot.bell);
        let rung =
            async || tokio::time::timeout(std::time::Duration::from_millis(20), bell.heard()).await.is_ok();
        drop(slot.lease().unwrap());
        assert!(!rung().await, "nobody cares");
        let [one, two] = [slot.lease().unwrap(), slot.lease().unwrap()];
        slot.retire();
        drop(one);
        assert!(!rung().await, "it is still in use");
        drop(two);
        assert!(rung().await);
        slot.revive();
        bell.set_wanted(true);
        drop(slot.lease().unwrap());
        assert!(rung().await);
    }
}
