//! The thread that compiles constraints that are new: a large schema takes a while, and the engine's thread answers others
//! meanwhile.

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
}

impl Compiler {
    /// Starts the thread.
    ///
    /// # Panics
    /// The system can't start a thread.
    pub fn start(way: Way, compiled: Compiled) -> Self {
        let (jobs, received) = mpsc::channel::<Command>();
        let (thread_way, grammars) = (way.clone(), Arc::clone(&compiled));
        let compile = move || {
            for command in received {
                if let Command::Generate { request, events, .. } = &command
                    && let (Some(constraint), Some(grammars)) = (&request.constraint, grammars.get())
                    && !events.is_closed()
                {
                    // Whether it can be compiled is kept, too, and told by the engine's thread.
                    let _ = grammars.begin(constraint);
                }
                thread_way.deliver(command);
            }
        };
        let named = thread::Builder::new().name("grammars".to_owned()).stack_size(STACK);
        named.spawn(compile).expect("the system starts a thread");
        Self { way, compiled, jobs }
    }

    /// Sends it.
    ///
    /// # Errors
    /// The engine has failed or stopped.
    pub fn send(&self, command: Command) -> Result<(), EngineError> {
        let Command::Generate { request, .. } = &command else { return self.way.send(command) };
        // While the model loads, the engine's thread has nothing else to do.
        let is_new = |constraint| self.compiled.get().is_some_and(|grammars| !grammars.is_ready(constraint));
        if request.constraint.as_ref().is_some_and(is_new) {
            return self.jobs.send(command).map_err(|_| EngineError::Stopped);
        }
        self.way.send(command)
    }
}
