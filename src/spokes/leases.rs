//! One serving generation: whether it is in memory, which requests use it, and when it may be
//! evicted.
//!
//! All of its state is under its own lock, so a request that takes a lease can't race with a swap:
//! the request either holds the old generation, or it asks for the new one.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::Notify;

use super::eviction::Resident;
use super::store::Facts;
use crate::adapter::Generation;

/// A generation, under the name that first served it.
#[derive(Debug)]
pub struct Leases {
    /// The generation.
    pub generation: Generation,
    /// For logs.
    pub name: String,
    /// Facts from the inspection.
    pub facts: Facts,
    /// The pinned file, in the form that the engine loads.
    pub path: PathBuf,
    inner: Mutex<Inner>,
    bell: Arc<Bell>,
}

/// Rung when the last lease of a spoke ends, if the spoke is retired or a load waits for memory.
/// Most ends of requests don't ring it.
#[derive(Debug, Default)]
pub struct Bell {
    wanted: AtomicBool,
    rung: Notify,
}

impl Bell {
    /// Sets whether anything waits for a spoke to become idle.
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
    /// Bytes, if the spoke is in memory.
    resident: Option<u64>,
    leases: u32,
    /// Whether no name refers to it any more.
    retired: bool,
    /// Whether another spoke waits for its memory.
    leaving: bool,
    uses: u64,
    last_used: Option<SystemTime>,
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It isn't in memory, or has to leave it. Ask the reconciler, which decides in which order
    /// requests are served.
    Absent,
    /// No name refers to it any more.
    Retired,
}

impl Leases {
    /// A generation that isn't in memory.
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

    /// Takes a lease, which keeps the spoke in memory for a request.
    ///
    /// # Errors
    /// The spoke isn't in memory, has to leave it, or is retired.
    pub fn lease(self: &Arc<Self>) -> Result<Lease, Refused> {
        self.lease_if(|inner| !inner.leaving)
    }

    /// The same for the request whose turn it is: a leaving spoke is no obstacle.
    ///
    /// # Errors
    /// The spoke isn't in memory, or is retired.
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

    /// Records that the spoke is in memory.
    pub fn loaded(&self, bytes: u64) {
        self.lock().resident = Some(bytes);
    }

    /// Marks the spoke as evicted if no request uses it. Returns whether it was in memory and no
    /// longer is.
    pub fn evict(&self) -> bool {
        let mut inner = self.lock();
        inner.leases == 0 && inner.resident.take().is_some()
    }

    /// Sets whether another spoke waits for the memory. Then new leases wait, too, or this spoke
    /// would never become idle.
    pub(super) fn set_leaving(&self, leaving: bool) {
        self.lock().leaving = leaving;
    }

    /// Ends new leases, because no name refers to it any more.
    pub fn retire(&self) {
        self.lock().retired = true;
    }

    /// Whether no name refers to it any more.
    pub(super) fn is_retired(&self) -> bool {
        self.lock().retired
    }

    /// Allows leases again, because a name refers to it again.
    pub fn revive(&self) {
        self.lock().retired = false;
    }

    /// Whether no name refers to it and no request uses it.
    pub fn is_over(&self) -> bool {
        let inner = self.lock();
        inner.retired && inner.leases == 0
    }

    /// Memory and use of the spoke, if it is in memory.
    pub fn resident(&self) -> Option<Resident> {
        let inner = self.lock();
        let bytes = inner.resident?;
        let idle = inner.leases == 0;
        Some(Resident { generation: self.generation, bytes, idle, last_used: inner.last_used })
    }

    /// Number of leases since the start, and the time of the last one.
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
    /// The generation that is held.
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

    /// Leases for tests.
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
