//! The engine's heartbeat. Between batches it publishes the current load; during a batch it only
//! shows that the thread is alive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Health, Totals};

/// Longest time between two heartbeats of an idle engine.
pub const BEAT: Duration = Duration::from_millis(200);
/// Shortest time between two heartbeats of a busy engine.
const SHORTEST: Duration = Duration::from_millis(100);

/// Sends heartbeats for the engine's thread and for the code that computes on its behalf.
pub struct Heartbeat<'a> {
    health: &'a watch::Sender<Health>,
    began: Instant,
    /// Milliseconds from `began` to the last beat.
    last: AtomicU64,
}

impl<'a> Heartbeat<'a> {
    /// Creates a heartbeat that has not sent a beat yet.
    pub fn new(health: &'a watch::Sender<Health>) -> Self {
        Self { health, began: Instant::now(), last: AtomicU64::new(0) }
    }

    fn due(&self) -> bool {
        let now = self.began.elapsed().as_millis() as u64;
        let last = self.last.load(Ordering::Relaxed);
        now.saturating_sub(last) >= SHORTEST.as_millis() as u64
    }

    fn felt(&self) {
        self.last.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Sends a beat between two batches, if the load has changed or one is due.
    pub fn beat(&self, running: u32, waiting: u32, totals: Totals) {
        let known = {
            let health = self.health.borrow();
            (health.running, health.waiting)
        };
        if known == (running, waiting) && !self.due() {
            return;
        }
        self.felt();
        self.health.send_modify(|health| {
            health.beat += 1;
            health.running = running;
            health.waiting = waiting;
            health.totals = totals;
        });
    }

    /// Publishes the number of running requests. Called before a client can learn in another way
    /// that a request has ended.
    pub fn runs(&self, running: u32, totals: Totals) {
        self.health.send_modify(|health| {
            health.running = running;
            health.totals = totals;
        });
    }

    /// Sends a beat during a batch: on a slow machine a batch may take longer than the watchdog's
    /// timeout.
    pub fn still(&self) {
        if self.due() {
            self.felt();
            self.health.send_modify(|health| health.beat += 1);
        }
    }

    /// Wraps the abort callback that llama.cpp calls after each node of a batch. Each call counts
    /// as a sign of life.
    pub fn unless<'q>(&'q self, given_up: impl Fn() -> bool + Sync + 'q) -> impl Fn() -> bool + Sync + 'q {
        move || {
            self.still();
            given_up()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineState;

    fn health() -> watch::Sender<Health> {
        let state = EngineState::Loading;
        watch::Sender::new(Health { state, beat: 0, running: 0, waiting: 0, totals: Totals::default() })
    }

    #[test]
    fn a_long_batch_is_a_sign_of_life_at_each_of_its_nodes_but_not_all_the_time() {
        let health = health();
        let heartbeat = Heartbeat::new(&health);
        let given_up = heartbeat.unless(|| false);
        let began = Instant::now();
        let mut nodes = 0;
        while began.elapsed() < 5 * SHORTEST {
            assert!(!given_up());
            nodes += 1;
        }
        let beats = health.borrow().beat;
        assert!((1..=5).contains(&beats), "{beats} beats in {nodes} nodes");
        assert!(heartbeat.unless(|| true)(), "the answer is passed on");
    }

    #[test]
    fn what_changes_is_told_at_once_and_what_does_not_now_and_then() {
        let health = health();
        let heartbeat = Heartbeat::new(&health);
        heartbeat.beat(1, 0, Totals::default());
        heartbeat.beat(1, 0, Totals::default());
        assert_eq!((health.borrow().beat, health.borrow().running), (1, 1));
        heartbeat.beat(1, 2, Totals::default());
        assert_eq!((health.borrow().beat, health.borrow().waiting), (2, 2));
    }
}
