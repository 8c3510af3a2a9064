//! The engine that serves: llama.cpp on a thread of its own, commands in by channel, events out.

use std::panic;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc as commands;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::command_sender::CommandSender;
use super::computing::Computing;
use super::constraint::STACK;
use super::grammar_compiler::{GrammarCompiler, Index};
use super::spokes;
use super::worker::{self, Command};
use super::{
    AnswerEvent, Embeddings, Engine, EngineError, EngineState, Generate, Health, LoadedSpoke, Prompt, Query,
    Reply, SpokeChange, Totals, likely_tokens, likely_use,
};
use crate::adapter::Kind;

/// What a [`LlamaEngine`] is told.
#[allow(clippy::struct_excessive_bools, reason = "switches that have nothing to do with each other")]
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
    /// Tokens of the requests that wait, estimated, prompts and answers; one may always wait alone.
    pub queue_tokens: u64,
    /// Bytes that keys and values of all sequences may take; half of the memory that is there
    /// unless given.
    pub cache_memory: Option<u64>,
    /// CPU threads.
    pub threads: u32,
    /// Sequences beside those of the lanes whose keys and values are kept for later requests.
    pub cached_sequences: u32,
    /// Whether tokens are drafted, for requests that don't say.
    pub draft: bool,
    /// Whether tokens that a constraint dictates are taken without asking the model. Off only to measure what it brings.
    pub force: bool,
    /// Whether weights go into memory of the engine's own, in huge pages, where there is plenty, instead of into the file's
    /// pages, which processes share and the system takes back. Only where that makes it faster.
    pub own_memory: bool,
    /// Whether what constraints need is made as soon as the model is loaded, instead of with the
    /// first of them.
    pub prepare_constraints: bool,
}

/// llama.cpp behind [`Engine`]. Dropping it stops its thread without draining.
#[derive(Debug)]
pub struct LlamaEngine {
    sender: CommandSender,
    compiler: GrammarCompiler,
    /// The model's file.
    path: PathBuf,
    load: Arc<Load>,
    lanes: u32,
    queue: u32,
    queue_tokens: u64,
    context: Option<u32>,
}

/// What has been accepted and isn't over.
#[derive(Debug, Default)]
struct Load {
    unfinished: AtomicU32,
    /// Tokens of the requests that wait.
    tokens: AtomicU64,
}

/// Counts a request from its acceptance to its end, however it ends, and its tokens as long as it waits.
#[derive(Debug)]
pub struct Ticket {
    load: Arc<Load>,
    tokens: u64,
}

impl Ticket {
    /// The request waits no longer.
    pub fn admitted(&mut self) {
        self.load.tokens.fetch_sub(std::mem::take(&mut self.tokens), Ordering::SeqCst);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admitted();
        self.load.unfinished.fetch_sub(1, Ordering::SeqCst);
    }
}

impl LlamaEngine {
    /// Starts the thread; returns at once, the weights are read there. The fastest kernels compute, untested.
    ///
    /// # Panics
    /// The system can't start a thread.
    pub fn start(settings: LlamaSettings) -> Self {
        Self::start_with(settings, Computing::default())
    }

    /// The same, choosing and trying kernels as told.
    ///
    /// # Panics
    /// The system can't start a thread.
    pub fn start_with(settings: LlamaSettings, computing: Computing) -> Self {
        let (commands, receiver) = commands::channel();
        let loading = Health {
            state: EngineState::Loading,
            beat: 0,
            running: 0,
            waiting: 0,
            totals: Totals::default(),
        };
        let (sender, health) = watch::channel(loading);
        let (lanes, queue, queue_tokens) = (settings.lanes.max(1), settings.queue, settings.queue_tokens);
        let (context, path) = (settings.context, settings.path.clone());
        let index = Arc::<Index>::default();
        let tell = Arc::clone(&index);
        thread::Builder::new()
            .name("engine".to_owned())
            .stack_size(STACK)
            .spawn(move || worker::run(&settings, &receiver, &sender, &tell, &computing))
            .expect("the system starts a thread");
        let sender = CommandSender { commands, health };
        let compiler = GrammarCompiler::start(sender.clone(), index);
        Self { sender, compiler, path, load: Arc::default(), lanes, queue, queue_tokens, context }
    }

    /// Accepts a request of about so many tokens, if it has a place to wait. One that takes a lane, as long as one is free,
    /// waits for a moment only.
    fn ticket(&self, tokens: u64, takes_lane: bool) -> Result<Ticket, EngineError> {
        let unfinished = self.load.unfinished.fetch_add(1, Ordering::SeqCst);
        let tokens = if takes_lane && unfinished < self.lanes { 0 } else { tokens };
        let waiting = self.load.tokens.fetch_add(tokens, Ordering::SeqCst);
        let ticket = Ticket { load: Arc::clone(&self.load), tokens };
        if unfinished >= self.lanes.saturating_add(self.queue) {
            return Err(EngineError::Overloaded { waiting: unfinished - self.lanes });
        }
        let (tokens, limit) = (waiting + tokens, self.queue_tokens);
        // One may wait alone, however long it is.
        if waiting > 0 && ticket.tokens > 0 && tokens > limit {
            return Err(EngineError::QueueTokens { tokens, limit });
        }
        Ok(ticket)
    }

    /// Tokens that a request will probably use: no more than the context holds.
    fn estimate(&self, request: &Generate) -> u64 {
        let context = self.context.or_else(|| match &self.sender.health.borrow().state {
            EngineState::Ready(model) => Some(model.n_ctx),
            _ => None,
        });
        likely_use(&request.prompt, request.max_tokens, context.unwrap_or(u32::MAX))
    }
}

impl Engine for LlamaEngine {
    fn generate(&self, request: Generate) -> Result<mpsc::UnboundedReceiver<AnswerEvent>, EngineError> {
        let ticket = self.ticket(self.estimate(&request), true)?;
        let (events, receiver) = mpsc::unbounded_channel();
        let request = Box::new(request);
        // What the engine's thread logs of it belongs to whoever asked.
        let span = match Span::current() {
            span if span.is_none() => tracing::info_span!("request", id = request.id),
            span => span,
        };
        let queued = Instant::now();
        self.compiler.send(Command::Generate { request, shape: None, events, ticket, queued, span })?;
        Ok(receiver)
    }

    fn embed(
        &self,
        inputs: Vec<Prompt>,
    ) -> Result<oneshot::Receiver<Result<Embeddings, EngineError>>, EngineError> {
        let ticket = self.ticket(inputs.iter().map(likely_tokens).sum(), false)?;
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Command::Embed { inputs, reply, ticket })?;
        Ok(receiver)
    }

    fn query(&self, query: Query) -> Result<oneshot::Receiver<Result<Reply, EngineError>>, EngineError> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Command::Query { query, reply })?;
        Ok(receiver)
    }

    fn spoke(
        &self,
        change: SpokeChange,
    ) -> Result<oneshot::Receiver<Result<LoadedSpoke, EngineError>>, EngineError> {
        let (reply, receiver) = oneshot::channel();
        match change {
            SpokeChange::Load(spoke) if spoke.kind == Kind::Felix => {
                let (sender, post) = (self.sender.clone(), self.path.clone());
                // Reading and ordering its weights takes longer than a token: it isn't the engine's thread that does it.
                let read = move || match panic::catch_unwind(|| spokes::read_felix(&spoke.path, &post))
                    .unwrap_or_else(|_| Err(EngineError::Spoke("reading it failed".to_owned())))
                {
                    Ok(weights) => {
                        let (change, felix) = (SpokeChange::Load(spoke), Some(weights));
                        sender.deliver(Command::Spoke { change, felix, reply });
                    }
                    Err(error) => drop(reply.send(Err(error))),
                };
                let named = thread::Builder::new().name("felix".to_owned());
                named.spawn(read).map_err(|error| EngineError::Spoke(error.to_string()))?;
            }
            change => self.sender.send(Command::Spoke { change, felix: None, reply })?,
        }
        Ok(receiver)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.sender.health.clone()
    }

    fn stop(&self, drain: Duration) {
        self.compiler.stop(Command::Stop { drain });
    }
}
