//! How commands come to the engine's thread, also from threads that prepare them.

use std::sync::mpsc as commands;

use tokio::sync::watch;

use super::worker::{self, Command};
use super::{EngineError, EngineState, Health};

/// The way to the engine's thread.
#[derive(Debug, Clone)]
pub struct CommandSender {
    /// Commands, in the order in which they are followed.
    pub commands: commands::Sender<Command>,
    /// Whether anybody follows them.
    pub health: watch::Receiver<Health>,
}

impl CommandSender {
    /// Sends it.
    ///
    /// # Errors
    /// The engine has failed or stopped.
    pub fn send(&self, command: Command) -> Result<(), EngineError> {
        self.offer(command).map_err(|unsent| unsent.1)
    }

    /// Sends it, or answers it as what comes too late.
    pub fn deliver(&self, command: Command) {
        if let Err(unsent) = self.offer(command) {
            let (command, error) = *unsent;
            worker::refuse(command, &error);
        }
    }

    /// Whether anything that is sent now can be followed.
    ///
    /// # Errors
    /// The engine has failed or stopped.
    pub fn check(&self) -> Result<(), EngineError> {
        followed(&self.health.borrow().state)
    }

    /// Sends it, or gives it back with the reason.
    fn offer(&self, command: Command) -> Result<(), Box<(Command, EngineError)>> {
        // Held until the command is sent: the thread answers what was sent before it changes the state for good.
        let health = self.health.borrow();
        if let Err(error) = followed(&health.state) {
            return Err(Box::new((command, error)));
        }
        let unsent = |commands::SendError(command)| Box::new((command, EngineError::Stopped));
        self.commands.send(command).map_err(unsent)
    }
}

/// Whether commands are followed in this state.
fn followed(state: &EngineState) -> Result<(), EngineError> {
    match state {
        EngineState::Failed(reason) => Err(EngineError::Model(reason.clone())),
        EngineState::Stopped => Err(EngineError::Stopped),
        EngineState::Loading | EngineState::Ready(_) => Ok(()),
    }
}
