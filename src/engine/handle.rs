//! The engine that serves requests: runs llama.cpp on its own thread, receives commands through a
//! channel and sends events.

use std::panic;
use std::sync::Arc;
use std::sync::mpsc as commands;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::admission::Admission;
use super::command::{Client, Command};
use super::command_sender::CommandSender;
use super::constraint::STACK;
use super::grammar_compiler::{GrammarCompiler, Index};
use super::self_test::SelfTest;
use super::spokes::{Answer, PreparedSpoke};
use super::worker;
use super::{
    AnswerEvent, Embeddings, Engine, EngineError, EngineState, Generate, Health, LoadSpoke, LoadedSpoke,
    Prompt, Query, Reply, SpokeChange, Totals, likely_tokens, likely_use,
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
    admission: Admission,
    settings: Arc<ModelSettings>,
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
        let admission = Admission::new(settings.lanes, settings.queue, settings.queue_tokens);
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
        Self { sender, compiler, admission, settings }
    }

    /// Estimates the tokens that a request will use, at most as many as the context holds.
    fn estimate(&self, request: &Generate) -> u64 {
        let context = self.settings.context.or_else(|| match &self.sender.health.borrow().state {
            EngineState::Ready(model) => Some(model.n_ctx),
            _ => None,
        });
        likely_use(&request.prompt, request.max_tokens, context.unwrap_or(u32::MAX))
    }

    /// Sends the command to load a spoke. Reading and reordering the weights of a Felix spoke takes
    /// longer than a token, so that is done first, on a separate thread.
    fn load_spoke(&self, spoke: LoadSpoke, reply: Answer) -> Result<(), EngineError> {
        if spoke.kind == Kind::Lora {
            let spoke = PreparedSpoke::lora(spoke);
            return self.sender.send(Command::LoadSpoke { spoke, reply });
        }
        let (sender, settings) = (self.sender.clone(), Arc::clone(&self.settings));
        let read = move || match panic::catch_unwind(|| PreparedSpoke::felix(spoke, &settings.path))
            .unwrap_or_else(|_| Err(EngineError::Spoke("reading it failed".to_owned())))
        {
            Ok(spoke) => sender.deliver(Command::LoadSpoke { spoke, reply }),
            Err(error) => drop(reply.send(Err(error))),
        };
        let named = thread::Builder::new().name("felix".to_owned());
        named.spawn(read).map_err(|error| EngineError::Spoke(error.to_string()))?;
        Ok(())
    }
}

impl Engine for LlamaEngine {
    fn generate(&self, request: Generate) -> Result<mpsc::UnboundedReceiver<AnswerEvent>, EngineError> {
        let ticket = self.admission.ticket(self.estimate(&request), true)?;
        let (events, receiver) = mpsc::unbounded_channel();
        // Attribute what the engine's thread logs about the request to the caller's span.
        let span = match Span::current() {
            span if span.is_none() => tracing::info_span!("request", id = request.id),
            span => span,
        };
        self.compiler.send(request, Client { events, ticket, queued: Instant::now(), span })?;
        Ok(receiver)
    }

    fn embed(
        &self,
        inputs: Vec<Prompt>,
    ) -> Result<oneshot::Receiver<Result<Embeddings, EngineError>>, EngineError> {
        let ticket = self.admission.ticket(inputs.iter().map(likely_tokens).sum(), false)?;
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
            SpokeChange::Load(spoke) => self.load_spoke(spoke, reply)?,
            SpokeChange::Unload(generation) => {
                self.sender.send(Command::UnloadSpoke { generation, reply })?;
            }
        }
        Ok(receiver)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.sender.health.clone()
    }

    fn stop(&self, drain: Duration) {
        self.compiler.stop(Instant::now() + drain);
    }
}
