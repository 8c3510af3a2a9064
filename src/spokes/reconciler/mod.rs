//! The reconciler: one thread that watches the folder, moves each file through its states, and
//! decides which spokes are in memory. All other threads hold a [`Spokes`]: they read snapshots
//! without waiting, and send commands for everything else.

mod commands;
mod commit;
mod copies;
mod effects;
mod error;
mod event_loop;
mod examining;
mod folder_changes;
mod given;
mod inspection;
mod judging;
mod loading;
mod marks;
mod parts;
mod post;
mod recovery;
mod revival;
mod serving;
mod state;
mod switching;
mod transitions;
mod waiting;

pub use commands::Command;
pub use error::SpokeError;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot, watch};

use super::gate::Questioner;
use super::leases::{Lease, Leases};
use super::life::Reason;
use super::registry::{Registry, SpokeRow};
use super::store::{Kinship, Transition};
use crate::adapter::Refusal;
use crate::config::SpokeSettings;
use crate::database::{DatabaseError, StateDirectory};
use crate::engine::Engine;

/// The post's name in requests, the same in every daemon.
pub const POST: &str = "bespoke";

/// Settings of the reconciler.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconcilerSettings {
    /// Spokes.
    pub spokes: SpokeSettings,
    /// The watched folder.
    pub folder: PathBuf,
    /// The post.
    pub model: PathBuf,
    /// The post's name. No spoke may have this name or [`POST`].
    pub model_id: String,
}

impl ReconcilerSettings {
    /// Whether requests mean the post by this name.
    fn is_post(&self, name: &str) -> bool {
        name == self.model_id || name == POST
    }
}

/// Why the reconciler can't start.
#[derive(Debug, thiserror::Error)]
pub enum ReconcilerError {
    /// The database can't be used.
    #[error(transparent)]
    State(#[from] DatabaseError),
    /// The post can't be read.
    #[error(transparent)]
    Post(#[from] Refusal),
    /// The system can't start a thread.
    #[error("the thread that keeps spokes can't be started: {0}")]
    Thread(std::io::Error),
}

/// Handle to the reconciler for all other threads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spokes {
    registry: Arc<Registry>,
    asks: mpsc::UnboundedSender<Command>,
    stop: Arc<watch::Sender<bool>>,
    stopping: Arc<watch::Sender<bool>>,
}

/// Where the reconciler receives what the handles of [`Spokes`] send.
#[derive(Debug)]
pub struct Inbox {
    spokes: Spokes,
    asked: mpsc::UnboundedReceiver<Command>,
    stopped: watch::Receiver<bool>,
}

impl Spokes {
    /// A handle, and the inbox of a reconciler that is not started yet. Until then, commands wait.
    pub fn channel() -> (Self, Inbox) {
        let (asks, asked) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let stopping = Arc::new(watch::Sender::new(false));
        let spokes = Self { registry: Arc::default(), asks, stop: Arc::new(stop), stopping };
        (spokes.clone(), Inbox { spokes, asked, stopped })
    }

    /// Snapshots for readers.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Takes leases on all of these or none, and loads those that aren't in memory.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn hold(&self, slots: Vec<Arc<Leases>>) -> Result<Vec<Lease>, SpokeError> {
        self.ask(|reply| Command::Hold { slots, beyond: false, reply }).await
    }

    /// Takes a lease for a gate. As during a swap, the spoke may exceed the memory limit, so that
    /// no serving spoke is evicted for it.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub(super) async fn hold_for_gate(&self, slot: Arc<Leases>) -> Result<Vec<Lease>, SpokeError> {
        self.ask(|reply| Command::Hold { slots: vec![slot], beyond: true, reply }).await
    }

    /// Goes back to the generation that served before.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn roll_back(&self, name: &str) -> Result<SpokeRow, SpokeError> {
        self.ask(|reply| Command::RollBack { name: name.to_owned(), reply }).await
    }

    /// Enables a disabled name, or retries its latest file that doesn't serve.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn enable(&self, name: &str) -> Result<SpokeRow, SpokeError> {
        self.ask(|reply| Command::Enable { name: name.to_owned(), reply }).await
    }

    /// Stops serving a name until it is enabled again.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn disable(&self, name: &str) -> Result<SpokeRow, SpokeError> {
        self.ask(|reply| Command::Disable { name: name.to_owned(), reply }).await
    }

    /// Loads a file from any path and serves it under a name. With `replace`, the name may already
    /// serve.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn load(&self, name: &str, path: PathBuf, replace: bool) -> Result<SpokeRow, SpokeError> {
        self.ask(|reply| Command::Load { name: name.to_owned(), path, replace, reply }).await
    }

    /// Forgets a name from [`Spokes::load`]; disables one from the folder.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn unload(&self, name: &str) -> Result<(), SpokeError> {
        self.ask(|reply| Command::Unload { name: name.to_owned(), reply }).await
    }

    /// Journal lines after this id.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn journal(&self, behind: i64, most: usize) -> Result<Vec<Transition>, SpokeError> {
        self.ask(|reply| Command::Journal { behind, most, reply }).await
    }

    /// Accepts spokes that were trained on a folder whose model the post was found to hold.
    ///
    /// # Errors
    /// [`SpokeError::Conflict`]: another post is served.
    pub async fn befriend(&self, kinship: Kinship) -> Result<(), SpokeError> {
        self.ask(|reply| Command::Kin { kinship, reply }).await
    }

    /// Starts to stop: event streams end, but requests still get leases.
    pub fn begin_to_stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether the daemon has started to stop.
    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits until the daemon starts to stop.
    pub async fn stopping(&self) {
        // The sender belongs to `self`, so waiting can't fail.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.begin_to_stop();
        self.stop.send_replace(true);
    }

    /// Waits until the thread has ended and the state folder is unlocked.
    pub async fn ended(&self) {
        self.asks.closed().await;
    }

    async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, SpokeError>>) -> Command,
    ) -> Result<T, SpokeError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).map_err(|_| SpokeError::Stopped)?;
        answer.await.unwrap_or(Err(SpokeError::Stopped))
    }
}

impl Inbox {
    /// Starts the reconciler: opens the state, restores what served, and watches the folder. The
    /// engine may still be loading. `questioner` asks the questions of gates.
    ///
    /// # Errors
    /// [`ReconcilerError`] if the state can't be used. Problems with single files are in their
    /// rows.
    pub fn start(
        self,
        settings: ReconcilerSettings,
        state: StateDirectory,
        engine: Arc<dyn Engine>,
        questioner: Arc<dyn Questioner>,
    ) -> Result<(), ReconcilerError> {
        let Self { spokes, asked, stopped } = self;
        let begin = parts::Reconciler::open(settings, state, engine, questioner, spokes)?;
        thread::Builder::new()
            .name("spokes".to_owned())
            .spawn(move || begin.run(asked, stopped))
            .map_err(ReconcilerError::Thread)?;
        Ok(())
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        // Drop the path: it is the daemon's own or in the folder, and clients must learn neither.
        Self { code: refusal.code().into(), message: refusal.reason.to_string(), hint: refusal.hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commands_to_a_reconciler_that_never_starts_fail() {
        let (spokes, inbox) = Spokes::channel();
        let asked = tokio::spawn({
            let spokes = spokes.clone();
            async move { spokes.enable("encoding").await }
        });
        tokio::task::yield_now().await;
        assert!(!asked.is_finished(), "it waits for the start");
        drop(inbox);
        assert_eq!(asked.await.unwrap().unwrap_err(), SpokeError::Stopped);
        spokes.ended().await;
        assert_eq!(spokes.disable("encoding").await.unwrap_err(), SpokeError::Stopped);
    }
}
