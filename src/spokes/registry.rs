//! Snapshots of what serves and of every file's state, which requests read without waiting.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{broadcast, watch};

use super::leases::Leases;
use super::life::{Reason, STATES, State};
use super::store::{Facts, Transition};
use crate::adapter::Generation;

/// Transitions that a slow reader may lag before it has to read the journal.
const BACKLOG: usize = 1_024;

/// The serving generations by name. Immutable: a swap publishes a new one.
#[derive(Debug, Clone, Default)]
pub struct Serving {
    /// By name.
    pub names: BTreeMap<String, Served>,
    /// Names that served once but no longer do, each with the reason if known.
    pub past: BTreeMap<String, Option<Reason>>,
}

/// The generation that serves under a name.
#[derive(Debug, Clone)]
pub struct Served {
    /// The name's id.
    pub id: i64,
    /// The generation.
    pub slot: Arc<Leases>,
    /// Generations that served before and could serve again, the latest last.
    pub before: Vec<Generation>,
}

impl Serving {
    /// The name with this id.
    pub fn by_id(&self, id: i64) -> Option<&str> {
        self.names.iter().find(|(_, served)| served.id == id).map(|(name, _)| name.as_str())
    }
}

/// State of one life, for display.
#[derive(Debug, Clone)]
pub struct SpokeRow {
    /// Name of the spoke, or of the entry if that is not valid for a spoke.
    pub name: String,
    /// Entry of the folder that it came from.
    pub entry: Option<String>,
    /// Its content, once it is known.
    pub generation: Option<Generation>,
    /// Its state.
    pub state: State,
    /// When it entered the state.
    pub since: SystemTime,
    /// Facts from the inspection, once known.
    pub facts: Option<Facts>,
    /// When it is tried again, if it waits.
    pub retry_at: Option<SystemTime>,
    /// The serving generation, if it serves.
    pub slot: Option<Arc<Leases>>,
}

/// Counters since the start, and gauges.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// Lives that entered each of [`STATES`].
    pub transitions: [u64; STATES.len()],
    /// Lives that are in each of them now.
    pub lives: [u64; STATES.len()],
    /// Names that switched to another generation.
    pub swaps: u64,
    /// Seconds from the first sight of a file to the swap, summed.
    pub swap_seconds: f64,
    /// Loads into the engine, including failed ones.
    pub loads: u64,
    /// Failed loads.
    pub load_failures: u64,
    /// Seconds that loads took.
    pub load_seconds: f64,
    /// Spokes evicted from memory to make room.
    pub evictions: u64,
    /// Bytes of spokes in memory.
    pub resident_bytes: u64,
    /// Whether the folder could be read at the last look.
    pub folder_readable: bool,
    /// Whether the last write to the database succeeded.
    pub state_writable: bool,
}

#[derive(Debug, Default)]
struct Counts {
    transitions: [AtomicU64; STATES.len()],
    swaps: AtomicU64,
    swap_micros: AtomicU64,
    loads: AtomicU64,
    load_failures: AtomicU64,
    load_micros: AtomicU64,
    evictions: AtomicU64,
    resident: AtomicU64,
    unreadable: AtomicU64,
}

/// Shared state: the reconciler writes it, and requests read it.
#[derive(Debug)]
pub struct Registry {
    serving: ArcSwap<Serving>,
    /// By the life's id.
    rows: RwLock<BTreeMap<u64, SpokeRow>>,
    news: broadcast::Sender<Transition>,
    /// Whether the spokes that served before the start are known.
    restored: watch::Sender<bool>,
    counts: Counts,
    /// Why changes can't be written to the database.
    unwritten: RwLock<Option<Reason>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            serving: ArcSwap::default(),
            rows: RwLock::default(),
            news: broadcast::Sender::new(BACKLOG),
            restored: watch::Sender::new(false),
            counts: Counts::default(),
            unwritten: RwLock::default(),
        }
    }
}

impl Registry {
    /// The serving generations at this moment.
    pub fn serving(&self) -> Arc<Serving> {
        self.serving.load_full()
    }

    /// Publishes what new requests get from now on.
    pub fn publish(&self, serving: Serving) {
        self.serving.store(Arc::new(serving));
    }

    /// All lives, sorted by name, the serving one first.
    pub fn rows(&self) -> Vec<SpokeRow> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let mut rows: Vec<SpokeRow> = rows.values().cloned().collect();
        rows.sort_by(|a, b| {
            let serves = |row: &SpokeRow| row.state != State::Serving;
            (&a.name, serves(a), a.since).cmp(&(&b.name, serves(b), b.since))
        });
        rows
    }

    /// Sets the row of a life; `None` removes it.
    pub fn set_row(&self, life: u64, row: Option<SpokeRow>) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        match row {
            Some(row) => drop(rows.insert(life, row)),
            None => drop(rows.remove(&life)),
        }
    }

    /// State and reason of the name's latest life. If the name doesn't serve, they explain why.
    pub fn latest(&self, name: &str) -> Option<(State, Option<Reason>)> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let row = rows.values().rev().find(|row| row.name == name)?;
        Some((row.state.clone(), row.state.reason().cloned()))
    }

    /// Subscribes to transitions from now on.
    pub fn news(&self) -> broadcast::Receiver<Transition> {
        self.news.subscribe()
    }

    /// Sends and counts a transition that is in the journal.
    pub fn tell(&self, transition: Transition) {
        if let Some(at) = STATES.iter().position(|state| *state == transition.to) {
            self.counts.transitions[at].fetch_add(1, Ordering::Relaxed);
        }
        // There may be no subscriber.
        let _ = self.news.send(transition);
    }

    /// Counts a swap, with the time since its file was first seen.
    pub fn swapped(&self, after: Duration) {
        self.counts.swaps.fetch_add(1, Ordering::Relaxed);
        self.counts.swap_micros.fetch_add(after.as_micros() as u64, Ordering::Relaxed);
    }

    /// Counts a finished load.
    pub fn load_ended(&self, took: Duration, succeeded: bool) {
        self.counts.loads.fetch_add(1, Ordering::Relaxed);
        self.counts.load_failures.fetch_add(u64::from(!succeeded), Ordering::Relaxed);
        self.counts.load_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// Counts an eviction.
    pub fn evicted(&self) {
        self.counts.evictions.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets the bytes of spokes in memory.
    pub fn set_resident(&self, bytes: u64) {
        self.counts.resident.store(bytes, Ordering::Relaxed);
    }

    /// Records that the spokes that served before the start are known now.
    pub fn set_restored(&self) {
        self.restored.send_replace(true);
    }

    /// Waits until the spokes that served before the start are known.
    pub async fn restored(&self) {
        // The sender belongs to `self`, so waiting can't fail.
        let _ = self.restored.subscribe().wait_for(|restored| *restored).await;
    }

    /// Whether the folder could be read at the last look.
    pub fn is_readable(&self) -> bool {
        self.counts.unreadable.load(Ordering::Relaxed) == 0
    }

    /// Why changes of spokes can't be written to the database, if so.
    pub fn unwritten(&self) -> Option<Reason> {
        self.unwritten.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets why changes can't be written to the database; `None` if they can.
    pub fn set_unwritten(&self, why: Option<Reason>) {
        *self.unwritten.write().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Sets whether the folder can be read.
    pub fn set_readable(&self, readable: bool) {
        self.counts.unreadable.store(u64::from(!readable), Ordering::Relaxed);
    }

    /// All counters.
    pub fn totals(&self) -> Totals {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let seconds = |count: &AtomicU64| of(count) as f64 / 1e6;
        let mut lives = [0; STATES.len()];
        for row in self.rows.read().unwrap_or_else(PoisonError::into_inner).values() {
            if let Some(at) = STATES.iter().position(|state| *state == row.state.name()) {
                lives[at] += 1;
            }
        }
        let counts = &self.counts;
        Totals {
            transitions: std::array::from_fn(|at| of(&counts.transitions[at])),
            lives,
            swaps: of(&counts.swaps),
            swap_seconds: seconds(&counts.swap_micros),
            loads: of(&counts.loads),
            load_failures: of(&counts.load_failures),
            load_seconds: seconds(&counts.load_micros),
            evictions: of(&counts.evictions),
            resident_bytes: of(&counts.resident),
            folder_readable: self.is_readable(),
            state_writable: self.unwritten().is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Kind;
    use crate::spokes::leases::tests::slot;

    fn row(name: &str, state: State, second: u64) -> SpokeRow {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        SpokeRow {
            name: name.to_owned(),
            entry: None,
            generation: None,
            state,
            since,
            facts: None,
            retry_at: None,
            slot: None,
        }
    }

    #[test]
    fn a_snapshot_stays_as_it_is_while_others_take_its_place() {
        let registry = Registry::default();
        let served = |text| Served { id: 3, slot: slot(text, Kind::Lora), before: vec![] };
        registry.publish(Serving { names: [("a".to_owned(), served("one"))].into(), ..Serving::default() });
        let before = registry.serving();
        registry.publish(Serving { names: [("a".to_owned(), served("two"))].into(), ..Serving::default() });
        assert_eq!(before.names["a"].slot.name, "one");
        assert_eq!(registry.serving().names["a"].slot.name, "two");
        assert_eq!((registry.serving().by_id(3), registry.serving().by_id(4)), (Some("a"), None));
    }

    #[test]
    fn rows_are_sorted_counted_and_the_latest_life_of_a_name_is_known() {
        let registry = Registry::default();
        let why = Reason::new("c", "m");
        registry.set_row(1, Some(row("b", State::Serving, 1)));
        registry.set_row(2, Some(row("b", State::Quarantined(why.clone()), 2)));
        registry.set_row(3, Some(row("a", State::Inert, 3)));
        registry.set_row(4, Some(row("a", State::Seen, 4)));
        registry.set_row(4, None);
        let names: Vec<_> = registry.rows().iter().map(|row| (row.name.clone(), row.state.name())).collect();
        let expected = [("a", "inert"), ("b", "serving"), ("b", "quarantined")];
        assert_eq!(names, expected.map(|(name, state)| (name.to_owned(), state)));
        assert_eq!(registry.latest("b"), Some((State::Quarantined(why.clone()), Some(why))));
        assert_eq!(registry.latest("c"), None);
        let lives = registry.totals().lives;
        assert_eq!(lives, [0, 0, 0, 0, 0, 1, 1, 0, 1, 0]);
    }

    #[test]
    fn what_is_told_is_counted_and_heard() {
        let registry = Registry::default();
        let mut news = registry.news();
        let transition = Transition {
            id: 7,
            at: 0,
            name: "a".to_owned(),
            generation: None,
            from: None,
            to: "serving".to_owned(),
            why: None,
        };
        registry.tell(transition.clone());
        registry.swapped(Duration::from_millis(1_500));
        assert_eq!(news.try_recv().unwrap(), transition);
        let totals = registry.totals();
        assert_eq!((totals.transitions[5], totals.swaps, totals.swap_seconds), (1, 1, 1.5));
    }
}
