//! The engine that serves requests: runs llama.cpp on its own thread, receives commands through a
//! channel and sends events.

use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc as commands;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::command_sender::CommandSender;
use super::constraint::STACK;
use super::grammar_compiler::{GrammarCompiler, Index};
use super::self_test::SelfTest;
use super::spokes;
use super::worker::{self, Command};
use super::{
    AnswerEvent, Embeddings, Engine, EngineError, EngineState, Generate, Health, LoadedSpoke, Prompt, Query,
    Reply, SpokeChange, Totals, likely_tokens, likely_use,
};
use crate::adapter::Kind;
use crate::config::ModelSettings;

/// How to start a [`LlamaEngine`], in addition to its settings. The default is for a file that
/// was not checked, without a self-test.
#[allow(clippy::struct_excessive_bools, reason = "switches that have nothing to do with each other")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlamaOptions {
    /// Whether tokens that a constraint dictates are taken without running the model. Disabled only
    /// to measure the gain.
    pub force: bool,
    /// Whether to read the weights into the engine's own memory, in huge pages
    /// ([`own_memory_pays`](super::own_memory_pays) says whether that is faster). Otherwise the
    /// file is mapped, so that processes share its pages and the system can reclaim them.
    pub own_memory: bool,
    /// Whether the caller has checked the file with the safe reader. Reading a large vocabulary a
    /// second time would take a third of the time until ready.
    pub checked: bool,
    /// Whether to build the index for constraints as soon as the model is loaded, instead of when
    /// the first constrained request arrives.
    pub prepare_constraints: bool,
    /// How the kernels are tested before they serve; `None` skips the test.
    pub self_test: Option<SelfTest>,
}

impl Default for LlamaOptions {
    fn default() -> Self {
        Self { force: true, own_memory: false, checked: false, prepare_constraints: false, self_test: None }
    }
}

/// An [`Engine`] on top of llama.cpp. Dropping it stops its thread without draining.
#[derive(Debug)]
pub struct LlamaEngine {
    sender: CommandSender,
    compiler: GrammarCompiler,
    settings: Arc<ModelSettings>,
    load: Arc<Load>,
}

/// The accepted requests that have not ended.
#[derive(Debug, Default)]
struct Load {
    unfinished: AtomicU32,
    /// Estimated tokens of the waiting requests.
    tokens: AtomicU64,
}

/// Counts a request from its acceptance to its end, however it ends, and counts its tokens while it
/// waits.
#[derive(Debug)]
pub struct Ticket {
    load: Arc<Load>,
    tokens: u64,
}

impl Ticket {
    /// The request has stopped waiting: its tokens no longer count.
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
    /// Starts the engine's thread with the default options and returns at once; the thread loads
    /// the weights.
    ///
    /// # Panics
    /// The system can't start a thread.
    pub fn start(settings: ModelSettings) -> Self {
        Self::start_with(settings, LlamaOptions::default())
    }

    /// Like [`LlamaEngine::start`], with these options.
    ///
    /// # Panics
    /// The system can't start a thread.
    pub fn start_with(settings: ModelSettings, options: LlamaOptions) -> Self {
        let (commands, receiver) = commands::channel();
        let loading = Health {
            state: EngineState::Loading,
            beat: 0,
            running: 0,
            waiting: 0,
            totals: Totals::default(),
        };
        let (sender, health) = watch::channel(loading);
        let settings = Arc::new(settings);
        let index = Arc::<Index>::default();
        let (of_worker, tell) = (Arc::clone(&settings), Arc::clone(&index));
        thread::Builder::new()
            .name("engine".to_owned())
            .stack_size(STACK)
            .spawn(move || worker::run(&of_worker, &options, &receiver, &sender, &tell))
            .expect("the system starts a thread");
        let sender = CommandSender { commands, health };
        let compiler = GrammarCompiler::start(sender.clone(), index);
        Self { sender, compiler, settings, load: Arc::default() }
    }

    /// Accepts a request of about `tokens` tokens if the queue has room for it. While a lane is
    /// free, a request that takes one waits only for a moment, so its tokens don't count.
    fn ticket(&self, tokens: u64, takes_lane: bool) -> Result<Ticket, EngineError> {
        let ModelSettings { lanes, queue, queue_tokens, .. } = *self.settings;
        let unfinished = self.load.unfinished.fetch_add(1, Ordering::SeqCst);
        let tokens = if takes_lane && unfinished < lanes { 0 } else { tokens };
        let waiting = self.load.tokens.fetch_add(tokens, Ordering::SeqCst);
        let ticket = Ticket { load: Arc::clone(&self.load), tokens };
        if unfinished >= lanes.saturating_add(queue) {
            return Err(EngineError::Overloaded { waiting: unfinished - lanes });
        }
        let (tokens, limit) = (waiting + tokens, queue_tokens);
        // A single request may wait, however long it is.
        if waiting > 0 && ticket.tokens > 0 && tokens > limit {
            return Err(EngineError::QueueTokens { tokens, limit });
        }
        Ok(ticket)
    }

    /// Estimates the tokens that a request will use, at most as many as the context holds.
    fn estimate(&self, request: &Generate) -> u64 {
        let context = self.settings.context.or_else(|| match &self.sender.health.borrow().state {
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
        // Attribute what the engine's thread logs about the request to the caller's span.
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
                let (sender, post) = (self.sender.clone(), Arc::clone(&self.settings));
                // Reading and reordering the weights takes longer than a token, so do it on a
                // separate thread.
                let read = move || match panic::catch_unwind(|| spokes::read_felix(&spoke.path, &post.path))
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
