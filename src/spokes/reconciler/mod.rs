//! The keeper: one thread that follows the folder, leads each file through its life, and decides what is in memory.
//! Everybody else holds a [`Spokes`], reads snapshots without waiting, and asks the keeper for the rest.

mod aliases;
mod commands;
mod effects;
mod event_loop;
mod folder_changes;
mod instances;
mod jobs;
mod recovery;
mod residency;

pub use commands::{Command, SpokeError};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::gate::{Gate, Questioner};
use super::leases::{Lease, Leases};
use super::life::Reason;
use super::probe::ChildProbe;
use super::registry::{Registry, SpokeRow};
use super::store::{Kinship, Transition};
use crate::adapter::{Limits, Refusal};
use crate::database::{DatabaseError, StateDirectory};
use crate::engine::Engine;

/// The post of whatever daemon it is, as requests name it.
pub const POST: &str = "bespoke";

/// What the keeper is told.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconcilerSettings {
    /// The watched folder.
    pub folder: PathBuf,
    /// Whether the system's word on changes is listened to; if not, the folder is looked at every [`Self::poll`].
    pub events: bool,
    /// How often the whole folder is looked at, whatever the system says.
    pub reconcile: Duration,
    /// The same without the system's word.
    pub poll: Duration,
    /// How long a file must look the same before it is read.
    pub settle: Duration,
    /// Entries of the folder that are followed.
    pub most: usize,
    /// Generations that are kept for each name beside the one that serves.
    pub keep: usize,
    /// Bytes of memory that spokes may take together.
    pub memory: u64,
    /// Bounds of a single spoke.
    pub limits: Limits,
    /// How contents are tried; `None`: they aren't.
    pub probe: Option<ChildProbe>,
    /// What must be reached, by name of the spoke or of the task that it was trained for.
    pub gates: BTreeMap<String, Gate>,
    /// Bytes that refused contents may take together.
    pub quarantine: u64,
    /// Whether a refused file is taken out of the folder.
    pub move_refused: bool,
    /// The post.
    pub model: PathBuf,
    /// Its name, which no spoke may have, nor [`POST`].
    pub model_id: String,
}

impl ReconcilerSettings {
    /// Whether requests mean the post by this name.
    fn is_post(&self, name: &str) -> bool {
        name == self.model_id || name == POST
    }
}

/// Why there are no spokes.
#[derive(Debug, thiserror::Error)]
pub enum ReconcilerError {
    /// The state can't be used.
    #[error(transparent)]
    State(#[from] DatabaseError),
    /// The post can't be read.
    #[error(transparent)]
    Post(#[from] Refusal),
    /// The system gives no thread.
    #[error("the thread that keeps spokes can't be started: {0}")]
    Thread(std::io::Error),
}

/// What everybody else has of the keeper. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spokes {
    registry: Arc<Registry>,
    asks: mpsc::UnboundedSender<Command>,
    stop: Arc<watch::Sender<bool>>,
    stopping: Arc<watch::Sender<bool>>,
    questioner: Arc<Mutex<Option<Arc<dyn Questioner>>>>,
}

impl Spokes {
    /// Opens the state, restores what served, and starts to follow the folder. The engine may still be loading.
    ///
    /// # Errors
    /// [`ReconcilerError`]: the state can't be used. What is wrong with single files is told of them.
    pub fn start(
        settings: ReconcilerSettings,
        state: StateDirectory,
        engine: Arc<dyn Engine>,
    ) -> Result<Self, ReconcilerError> {
        let registry = Arc::<Registry>::default();
        let (asks, asked) = mpsc::unbounded_channel();
        let stop = Arc::new(watch::Sender::new(false));
        let stopping = Arc::new(watch::Sender::new(false));
        let questioner = Arc::default();
        let spokes = Self { registry, asks, stop, stopping, questioner };
        let begin = event_loop::Reconciler::open(settings, state, engine, &spokes)?;
        let stopped = spokes.stop.subscribe();
        thread::Builder::new()
            .name("spokes".to_owned())
            .spawn(move || begin.run(asked, stopped))
            .map_err(ReconcilerError::Thread)?;
        Ok(spokes)
    }

    /// What is known, for those who only read.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Who asks the questions of gates.
    pub fn set_questioner(&self, questioner: Arc<dyn Questioner>) {
        *self.questioner.lock().unwrap_or_else(PoisonError::into_inner) = Some(questioner);
    }

    fn questioner(&self) -> Option<Arc<dyn Questioner>> {
        self.questioner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leases of these, all or none; loads what isn't in memory.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn hold(&self, slots: Vec<Arc<Leases>>) -> Result<Vec<Lease>, SpokeError> {
        self.ask(|reply| Command::Hold { slots, beyond: false, reply }).await
    }

    /// A lease of what a gate is to judge. It may be in memory beyond the limit, as during a swap: what serves must not have to
    /// go for it.
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

    /// Serves a name again that was disabled, or the latest file under it that doesn't serve.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn enable(&self, name: &str) -> Result<SpokeRow, SpokeError> {
        self.ask(|reply| Command::Enable { name: name.to_owned(), reply }).await
    }

    /// Stops to serve a name until it is enabled again.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn disable(&self, name: &str) -> Result<SpokeRow, SpokeError> {
        self.ask(|reply| Command::Disable { name: name.to_owned(), reply }).await
    }

    /// Takes a file from anywhere and serves it under a name. `replace`: also if the name serves already.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn load(&self, name: &str, path: PathBuf, replace: bool) -> Result<SpokeRow, SpokeError> {
        self.ask(|reply| Command::Load { name: name.to_owned(), path, replace, reply }).await
    }

    /// Forgets a name that came by [`Spokes::load`]; one that came by the folder is disabled.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn unload(&self, name: &str) -> Result<(), SpokeError> {
        self.ask(|reply| Command::Unload { name: name.to_owned(), reply }).await
    }

    /// Lines of the journal behind this id.
    ///
    /// # Errors
    /// [`SpokeError`].
    pub async fn journal(&self, behind: i64, most: usize) -> Result<Vec<Transition>, SpokeError> {
        self.ask(|reply| Command::Journal { behind, most, reply }).await
    }

    /// Has spokes accepted that were trained on a folder, whose model the post was found to hold.
    ///
    /// # Errors
    /// [`SpokeError::Conflict`]: another post is served.
    pub async fn befriend(&self, kinship: Kinship) -> Result<(), SpokeError> {
        self.ask(|reply| Command::Kin { kinship, reply }).await
    }

    /// The daemon begins to stop: streams of news end; whoever still asks for leases gets them.
    pub fn begin_to_stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether it has begun to stop.
    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits for that.
    pub async fn stopping(&self) {
        // The sender is our own.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.begin_to_stop();
        self.stop.send_replace(true);
        // Whoever asks there has us in turn.
        *self.questioner.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until the thread has ended and the state is another's to use.
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

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        // The path is the daemon's own or in the folder; whoever asks over the network learns neither.
        Self { code: refusal.code().into(), message: refusal.reason.to_string(), hint: refusal.hint() }
    }
}
