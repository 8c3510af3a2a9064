//! Does the work of constraints that would block the engine's thread: indexing the vocabulary,
//! which takes seconds for a large one, and compiling new constraints.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Instant;

use super::EngineError;
use super::command_sender::CommandSender;
use super::constraint::{Grammars, STACK};
use super::vocabulary::Vocabulary;
use super::worker::Command;
use crate::allocator;

/// The compiled grammars of an engine. Created on first use, once the vocabulary is known.
#[derive(Debug, Default)]
pub struct Index {
    /// `None` if the model can't be loaded.
    vocabulary: OnceLock<Option<Arc<Vocabulary>>>,
    grammars: OnceLock<Result<Arc<Grammars>, EngineError>>,
}

impl Index {
    /// Sets the vocabulary.
    pub fn tell(&self, vocabulary: &Arc<Vocabulary>) {
        let _ = self.vocabulary.set(Some(Arc::clone(vocabulary)));
    }

    /// If no vocabulary is set, marks that there will be none.
    pub fn give_up(&self) {
        let _ = self.vocabulary.set(None);
    }

    /// The grammars, if they are created.
    pub fn get(&self) -> Option<&Arc<Grammars>> {
        self.grammars.get()?.as_ref().ok()
    }

    /// The grammars. The first caller creates them and others wait. Callers also wait until the
    /// vocabulary is known.
    ///
    /// # Errors
    /// llguidance can't work with the vocabulary; there is no vocabulary.
    pub fn grammars(&self) -> Result<&Arc<Grammars>, EngineError> {
        let make = || {
            let Some(vocabulary) = self.vocabulary.wait() else { return Err(EngineError::Stopped) };
            let began = Instant::now();
            let broken = |_| Err(EngineError::Internal("indexing the vocabulary failed".to_owned()));
            let made = catch_unwind(AssertUnwindSafe(|| Grammars::new(&vocabulary.token_env())));
            let made = made.unwrap_or_else(broken).map(Arc::new);
            // Indexing takes several times as much memory as its result.
            allocator::give_back();
            match &made {
                Ok(_) => tracing::debug!(ms = began.elapsed().as_millis(), "constraints can be compiled"),
                Err(error) => tracing::error!(%error, "no constraint can be compiled"),
            }
            made
        };
        self.grammars.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// Creates the grammars now, on a separate thread.
    pub fn prepare(self: &Arc<Self>) {
        let index = Arc::clone(self);
        let named = thread::Builder::new().name("vocabulary".to_owned());
        if let Err(error) = named.spawn(move || drop(index.grammars().cloned())) {
            tracing::warn!(%error, "the first constraint will take longer");
        }
    }
}

/// Sends requests to the engine's thread. Requests with a new constraint go through the thread that
/// compiles it.
#[derive(Debug)]
pub struct GrammarCompiler {
    sender: CommandSender,
    index: Arc<Index>,
    jobs: mpsc::Sender<Command>,
    /// Set when the engine stops. From then on, pending requests are passed on uncompiled, so that
    /// they reach the engine's thread before the stop command.
    stopping: Arc<AtomicBool>,
}

impl GrammarCompiler {
    /// Starts the thread.
    ///
    /// # Panics
    /// The system can't start a thread.
    pub fn start(sender: CommandSender, index: Arc<Index>) -> Self {
        let (jobs, received) = mpsc::channel::<Command>();
        let stopping = Arc::<AtomicBool>::default();
        let (own_sender, own_index, stop) = (sender.clone(), Arc::clone(&index), Arc::clone(&stopping));
        let compile = move || {
            for mut command in received {
                if !stop.load(Ordering::SeqCst) {
                    prepare(&mut command, &own_index);
                }
                own_sender.deliver(command);
            }
        };
        let named = thread::Builder::new().name("grammars".to_owned()).stack_size(STACK);
        named.spawn(compile).expect("the system starts a thread");
        Self { sender, index, jobs, stopping }
    }

    /// Sends a command.
    ///
    /// # Errors
    /// The engine has failed or stopped.
    pub fn send(&self, mut command: Command) -> Result<(), EngineError> {
        if let Command::Generate { request, shape, .. } = &mut command
            && let Some(constraint) = &request.constraint
        {
            *shape = self.index.get().and_then(|grammars| grammars.known(constraint));
            if shape.is_none() {
                self.sender.check()?;
                return self.jobs.send(command).map_err(|_| EngineError::Stopped);
            }
        }
        self.sender.send(command)
    }

    /// Sends the stop command after everything that was accepted before.
    pub fn stop(&self, command: Command) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Err(mpsc::SendError(command)) = self.jobs.send(command) {
            self.sender.deliver(command);
        }
    }
}

/// Compiles the constraint of a request, unless its client has stopped listening.
fn prepare(command: &mut Command, index: &Index) {
    let Command::Generate { request, events, shape, .. } = command else { return };
    let Some(constraint) = request.constraint.as_ref().filter(|_| !events.is_closed()) else { return };
    let grammars = match index.grammars() {
        Ok(grammars) => grammars,
        Err(error) => return *shape = Some(Err(error)),
    };
    let broken = |_| Err(EngineError::Schema("compiling it failed".to_owned()));
    *shape = Some(catch_unwind(AssertUnwindSafe(|| grammars.shape(constraint))).unwrap_or_else(broken));
}
