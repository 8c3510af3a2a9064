//! What constraints need, away from the engine's thread: the index of the vocabulary, which takes
//! seconds for a large one, and the thread that compiles constraints that are new. The engine's
//! thread answers others meanwhile.

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

/// The engine's grammars, indexed once its vocabulary is known and somebody needs them.
#[derive(Debug, Default)]
pub struct Index {
    /// `None`: the model can't be loaded.
    vocabulary: OnceLock<Option<Arc<Vocabulary>>>,
    grammars: OnceLock<Result<Arc<Grammars>, EngineError>>,
}

impl Index {
    /// Tells the vocabulary.
    pub fn tell(&self, vocabulary: &Arc<Vocabulary>) {
        let _ = self.vocabulary.set(Some(Arc::clone(vocabulary)));
    }

    /// There will be no vocabulary, if there is none yet.
    pub fn give_up(&self) {
        let _ = self.vocabulary.set(None);
    }

    /// The grammars, if they are there.
    pub fn get(&self) -> Option<&Arc<Grammars>> {
        self.grammars.get()?.as_ref().ok()
    }

    /// The grammars; the first who asks makes them, and who asks meanwhile waits. Who asks before
    /// the vocabulary is known waits for that, too.
    ///
    /// # Errors
    /// llguidance can't work with the vocabulary; there is none.
    pub fn grammars(&self) -> Result<&Arc<Grammars>, EngineError> {
        let make = || {
            let Some(vocabulary) = self.vocabulary.wait() else { return Err(EngineError::Stopped) };
            let began = Instant::now();
            let broken = |_| Err(EngineError::Internal("indexing the vocabulary failed".to_owned()));
            let made = catch_unwind(AssertUnwindSafe(|| Grammars::new(&vocabulary.token_env())));
            let made = made.unwrap_or_else(broken).map(Arc::new);
            // It takes several times as much memory as what comes of it.
            allocator::give_back();
            match &made {
                Ok(_) => tracing::debug!(ms = began.elapsed().as_millis(), "constraints can be compiled"),
                Err(error) => tracing::error!(%error, "no constraint can be compiled"),
            }
            made
        };
        self.grammars.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// Has the grammars made now, on a thread of its own.
    pub fn prepare(self: &Arc<Self>) {
        let index = Arc::clone(self);
        let named = thread::Builder::new().name("vocabulary".to_owned());
        if let Err(error) = named.spawn(move || drop(index.grammars().cloned())) {
            tracing::warn!(%error, "the first constraint will take longer");
        }
    }
}

/// Sends requests to the engine's thread, those with a new constraint by way of the thread that compiles it.
#[derive(Debug)]
pub struct GrammarCompiler {
    sender: CommandSender,
    index: Arc<Index>,
    jobs: mpsc::Sender<Command>,
    /// Nothing is compiled any more: what was accepted goes to the engine's thread ahead of the word to stop.
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

    /// Sends it.
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

    /// Sends the word to stop, behind everything that was accepted before.
    pub fn stop(&self, command: Command) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Err(mpsc::SendError(command)) = self.jobs.send(command) {
            self.sender.deliver(command);
        }
    }
}

/// Compiles what a request needs, if anybody still waits for its answer.
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
