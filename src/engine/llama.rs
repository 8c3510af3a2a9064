//! The engine that serves: llama.cpp on a thread of its own, commands in by channel, events out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc as commands;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::worker::{self, Command};
use super::{
    Embeddings, Engine, EngineError, EngineState, Event, Generate, Health, Prompt, Query, Reply, Totals,
};

/// What a [`LlamaEngine`] is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlamaSettings {
    /// The GGUF file.
    pub path: PathBuf,
    /// Tokens that one request may use, prompt and answer together; the model's own limit unless given.
    pub context: Option<u32>,
    /// Requests that are answered at the same time.
    pub lanes: u32,
    /// Requests that may wait.
    pub queue: u32,
    /// CPU threads.
    pub threads: u32,
    /// Sequences beside those of the lanes whose keys and values are kept for later requests.
    pub cached_sequences: u32,
    /// Whether tokens are drafted, for requests that don't say.
    pub draft: bool,
    /// Whether tokens that a constraint dictates are taken without asking the model. Off only to measure what it brings.
    pub force: bool,
}

/// llama.cpp behind [`Engine`]. Dropping it stops its thread without draining.
#[derive(Debug)]
pub struct LlamaEngine {
    commands: commands::Sender<Command>,
    health: watch::Receiver<Health>,
    unfinished: Arc<AtomicU32>,
    lanes: u32,
    queue: u32,
}

/// Counts a request from its acceptance to its end, however it ends.
#[derive(Debug)]
pub struct Ticket(Arc<AtomicU32>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl LlamaEngine {
    /// Starts the thread; returns at once, the weights are read there.
    ///
    /// # Panics
    /// The system can't start a thread.
    pub fn start(settings: LlamaSettings) -> Self {
        let (commands, receiver) = commands::channel();
        let loading = Health {
            state: EngineState::Loading,
            beat: 0,
            running: 0,
            waiting: 0,
            totals: Totals::default(),
        };
        let (sender, health) = watch::channel(loading);
        let (lanes, queue) = (settings.lanes.max(1), settings.queue);
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker::run(&settings, &receiver, &sender))
            .expect("the system starts a thread");
        Self { commands, health, unfinished: Arc::default(), lanes, queue }
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        // Held until the command is sent: the thread answers what was sent before it changes the state for good.
        let health = self.health.borrow();
        match &health.state {
            EngineState::Failed(reason) => return Err(EngineError::Model(reason.clone())),
            EngineState::Stopped => return Err(EngineError::Stopped),
            EngineState::Loading | EngineState::Ready(_) => {}
        }
        self.commands.send(command).map_err(|_| EngineError::Stopped)
    }

    fn ticket(&self) -> Result<Ticket, EngineError> {
        let before = self.unfinished.fetch_add(1, Ordering::SeqCst);
        let ticket = Ticket(Arc::clone(&self.unfinished));
        if before >= self.lanes.saturating_add(self.queue) {
            return Err(EngineError::Overloaded { waiting: before - self.lanes });
        }
        Ok(ticket)
    }
}

impl Engine for LlamaEngine {
    fn generate(&self, request: Generate) -> Result<mpsc::UnboundedReceiver<Event>, EngineError> {
        let ticket = self.ticket()?;
        let (events, receiver) = mpsc::unbounded_channel();
        self.send(Command::Generate { request: Box::new(request), events, ticket, queued: Instant::now() })?;
        Ok(receiver)
    }

    fn embed(
        &self,
        inputs: Vec<Prompt>,
    ) -> Result<oneshot::Receiver<Result<Embeddings, EngineError>>, EngineError> {
        let ticket = self.ticket()?;
        let (reply, receiver) = oneshot::channel();
        self.send(Command::Embed { inputs, reply, ticket })?;
        Ok(receiver)
    }

    fn query(&self, query: Query) -> Result<oneshot::Receiver<Result<Reply, EngineError>>, EngineError> {
        let (reply, receiver) = oneshot::channel();
        self.send(Command::Query { query, reply })?;
        Ok(receiver)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn stop(&self, drain: Duration) {
        // A thread that is gone has stopped already.
        let _ = self.commands.send(Command::Stop { drain });
    }
}
