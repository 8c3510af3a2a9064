//! Watches the engine's heartbeat: when the last beat was, and whether it has stopped.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::{EngineState, Health};

/// Longer than any machine runs.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// Follows an engine's heartbeat while [`Liveness::silence`] is awaited.
#[derive(Debug)]
pub struct Liveness {
    health: watch::Receiver<Health>,
    last: Mutex<Instant>,
}

impl Liveness {
    /// Follows the engine with this health. The last beat counts as now.
    pub fn new(health: watch::Receiver<Health>) -> Arc<Self> {
        Arc::new(Self { health, last: Mutex::new(Instant::now()) })
    }

    /// Time since the last beat.
    pub fn age(&self) -> Duration {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn felt(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when a ready engine has not beaten for `limit` (zero: never). An engine that loads
    /// its weights has no heartbeat yet, and a stopped one has none any more, so neither counts as
    /// silent.
    pub async fn silence(&self, limit: Duration) {
        let limit = if limit.is_zero() { FOR_EVER } else { limit };
        let mut health = self.health.clone();
        let mut beat = None;
        loop {
            let (now, ready) = {
                let health = health.borrow_and_update();
                (health.beat, matches!(health.state, EngineState::Ready(_)))
            };
            if beat != Some(now) || !ready {
                self.felt();
                beat = Some(now);
            }
            let left = limit.saturating_sub(self.age());
            match tokio::time::timeout(left, health.changed()).await {
                // An engine that is gone is noticed by the code that watches its state.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) if ready && self.age() >= limit => return,
                Ok(Ok(())) | Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{FakeEngine, Totals};

    const LIMIT: Duration = Duration::from_secs(30);

    fn health(state: EngineState) -> (watch::Sender<Health>, Arc<Liveness>) {
        let health = Health { state, beat: 1, running: 0, waiting: 0, totals: Totals::default() };
        let (sender, receiver) = watch::channel(health);
        (sender, Liveness::new(receiver))
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_ready_engine_that_stops_beating_is_noticed() {
        runtime().block_on(async {
            let (sender, liveness) = health(EngineState::Ready(Arc::new(FakeEngine::info())));
            let limit = Duration::from_millis(100);
            let began = Instant::now();
            let beating = tokio::spawn(async move {
                for _ in 0..10 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    sender.send_modify(|health| health.beat += 1);
                }
                sender
            });
            liveness.silence(limit).await;
            assert!(began.elapsed() >= limit + Duration::from_millis(180), "{:?}", began.elapsed());
            assert!(liveness.age() >= limit);
            drop(beating.await);
        });
    }

    #[test]
    fn changes_without_a_beat_are_no_sign_of_life_and_loading_needs_none() {
        runtime().block_on(async {
            let (sender, liveness) = health(EngineState::Loading);
            let limit = Duration::from_millis(50);
            assert!(tokio::time::timeout(4 * limit, liveness.silence(limit)).await.is_err(), "it loads");
            sender.send_modify(|health| health.state = EngineState::Ready(Arc::new(FakeEngine::info())));
            let moving = tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    sender.send_modify(|health| health.waiting += 1);
                }
            });
            tokio::time::timeout(LIMIT, liveness.silence(limit)).await.expect("the beat has stopped");
            moving.abort();
        });
    }
}
