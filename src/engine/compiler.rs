//! The thread that compiles constraints that are new: a large schema takes a while, and the engine's thread answers others
//! meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use super::EngineError;
use super::constraint::{Grammars, STACK};
use super::way::Way;
use super::worker::Command;

/// The engine's grammars, once it knows its vocabulary.
pub type Compiled = Arc<OnceLock<Arc<Grammars>>>;

/// Sends requests to the engine's thread, those with a new constraint by way of the thread that compiles it.
#[derive(Debug)]
pub struct Compiler {
    way: Way,
    compiled: Compiled,
    jobs: mpsc::Sender<Command>,
    /// Nothing is compiled any more: what was accepted goes to the engine's thread ahead of the word to stop.
    stopping: Arc<AtomicBool>,
}

impl Compiler {
    /// Starts the thread.
    ///
    /// # Panics
    /// The system can't start a thread.
    pub fn start(way: Way, compiled: Compiled) -> Self {
        let (jobs, received) = mpsc::channel::<Command>();
        let stopping = Arc::<AtomicBool>::default();
        let (own_way, grammars, stop) = (way.clone(), Arc::clone(&compiled), Arc::clone(&stopping));
        let compile = move || {
            for mut command in received {
                if !stop.load(Ordering::SeqCst)
                    && let Some(grammars) = grammars.get()
                {
                    prepare(&mut command, grammars);
                }
                own_way.deliver(command);
            }
        };
        let named = thread::Builder::new().name("grammars".to_owned()).stack_size(STACK);
        named.spawn(compile).expect("the system starts a thread");
        Self { way, compiled, jobs, stopping }
    }

    /// Sends it.
    ///
    /// # Errors
    /// The engine has failed or stopped.
    pub fn send(&self, mut command: Command) -> Result<(), EngineError> {
        // What comes before the model is loaded is compiled by the engine's thread.
        if let Command::Generate { request, shape, .. } = &mut command
            && let (Some(constraint), Some(grammars)) = (&request.constraint, self.compiled.get())
        {
            *shape = grammars.known(constraint);
            if shape.is_none() {
                self.way.check()?;
                return self.jobs.send(command).map_err(|_| EngineError::Stopped);
            }
        }
        self.way.send(command)
    }

    /// Sends the word to stop, behind everything that was accepted before.
    pub fn stop(&self, command: Command) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Err(mpsc::SendError(command)) = self.jobs.send(command) {
            self.way.deliver(command);
        }
    }
}

/// Compiles what a request needs, if anybody still waits for its answer.
fn prepare(command: &mut Command, grammars: &Grammars) {
    let Command::Generate { request, events, shape, .. } = command else { return };
    let Some(constraint) = request.constraint.as_ref().filter(|_| !events.is_closed()) else { return };
    let broken = |_| Err(EngineError::Schema("compiling it failed".to_owned()));
    *shape = Some(catch_unwind(AssertUnwindSafe(|| grammars.shape(constraint))).unwrap_or_else(broken));
}
