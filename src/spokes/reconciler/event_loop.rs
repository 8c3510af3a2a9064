//! The reconciler's thread: its turns of waiting, acting, committing and publishing.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::commands::Command;
use super::parts::Reconciler;
use crate::engine::{EngineState, Health};

/// Changes of the folder that one turn handles, so that ten thousand files don't keep a request
/// waiting.
const CHANGES: usize = 128;
/// Longest wait of the thread. Requests whose client left are noticed at the latest then.
const PATIENCE: Duration = Duration::from_secs(1);

impl Reconciler {
    /// Runs the thread.
    pub(super) fn run(mut self, mut asked: mpsc::UnboundedReceiver<Command>, stop: watch::Receiver<bool>) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
        match runtime {
            Ok(runtime) => {
                runtime.block_on(self.turns(&mut asked, stop));
                // A copy or an inspection still in progress must not delay the end of the process.
                runtime.shutdown_background();
            }
            Err(error) => {
                tracing::error!(%error, "the reconciler of spokes can't be started: the files in the folder are left alone");
            }
        }
        // Dropped in this order, so that a caller that sees the channel closed finds the state
        // folder unlocked.
        drop(self);
        drop(asked);
    }

    async fn turns(&mut self, asked: &mut mpsc::UnboundedReceiver<Command>, mut stop: watch::Receiver<bool>) {
        self.read_post().await;
        if let Err(error) = self.restore() {
            tracing::error!(%error, "the stored state can't be read; starting from the files in the folder");
        }
        self.registry.set_restored();
        self.folder.watch();
        loop {
            self.act(&stop).await;
            if *stop.borrow() {
                return;
            }
            let is_ready = self.engine_is_ready();
            let wake = self.next_turn();
            tokio::select! {
                _ = stop.changed() => return,
                command = asked.recv() => match command {
                    Some(command) => self.asked(command),
                    None => return,
                },
                done = self.jobs.ended() => self.finished(done),
                () = self.residency.heard() => {}
                () = ready(&mut self.health), if !is_ready => {}
                noticed = self.folder.noticed() => self.folder.hear(Instant::now(), &noticed),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            if self.instances.next_try().is_some_and(|at| at <= Instant::now()) {
                if matches!(self.post, Some(Err(_))) {
                    self.read_post().await;
                }
                self.try_again();
            }
            self.look();
        }
    }

    /// When the next turn begins at the latest.
    fn next_turn(&self) -> Instant {
        let now = Instant::now();
        if self.residency.has_preload() && self.engine_is_ready() {
            return now;
        }
        let next = self.folder.next_look(now).min(now + PATIENCE);
        self.instances.next_try().map_or(next, |at| at.min(next))
    }

    /// Does all work that is possible now, and commits it.
    async fn act(&mut self, stop: &watch::Receiver<bool>) {
        for _ in 0..CHANGES {
            let Some(change) = self.folder.next_change() else { break };
            self.changed(change);
        }
        loop {
            while let Some((id, effect)) = self.outbox.next_effect() {
                self.effect(id, effect, stop).await;
            }
            self.write_down();
            self.free_unneeded();
            if self.engine_is_ready() {
                self.serve_waiting(stop).await;
                self.serve_preload(stop).await;
            }
            self.start_job();
            self.start_judging();
            if !self.outbox.has_effects() {
                break;
            }
        }
        self.write_down();
        self.sweep();
    }
}

/// Waits until the engine has loaded its weights.
async fn ready(health: &mut watch::Receiver<Health>) {
    if health.wait_for(|health| matches!(health.state, EngineState::Ready(_))).await.is_err() {
        // The engine is gone and will load nothing.
        std::future::pending::<()>().await;
    }
}
