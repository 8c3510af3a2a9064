//! Delivers commands to the engine's thread, also from the threads that prepare them.

use std::sync::mpsc as commands;

use tokio::sync::watch;

use super::command::Command;
use super::{EngineError, EngineState, Health};

/// A handle for sending commands to the engine's thread.
#[derive(Debug, Clone)]
pub struct CommandSender {
    /// Commands, executed in the order in which they are sent.
    pub commands: commands::Sender<Command>,
    /// Shows whether the thread still executes commands.
    pub health: watch::Receiver<Health>,
}

impl CommandSender {
    /// Sends a command.
    ///
    /// # Errors
    /// The engine has failed or stopped.
    pub fn send(&self, command: Command) -> Result<(), EngineError> {
        self.offer(command).map_err(|unsent| unsent.1)
    }

    /// Sends a command. If the engine no longer accepts any, answers the command with the reason.
    pub fn deliver(&self, command: Command) {
        if let Err(unsent) = self.offer(command) {
            let (command, error) = *unsent;
            command.refuse(&error);
        }
    }

    /// Checks whether the engine still accepts commands.
    ///
    /// # Errors
    /// The engine has failed or stopped.
    pub fn check(&self) -> Result<(), EngineError> {
        followed(&self.health.borrow().state)
    }

    /// Sends a command, or returns it with the reason why it can't be sent.
    fn offer(&self, command: Command) -> Result<(), Box<(Command, EngineError)>> {
        // Hold the borrow until the command is sent. The thread must take the write lock to enter
        // its final state, so it sees and answers every command that was sent before.
        let health = self.health.borrow();
        if let Err(error) = followed(&health.state) {
            return Err(Box::new((command, error)));
        }
        let unsent = |commands::SendError(command)| Box::new((command, EngineError::Stopped));
        self.commands.send(command).map_err(unsent)
    }
}

/// Whether the engine executes commands in this state.
fn followed(state: &EngineState) -> Result<(), EngineError> {
    match state {
        EngineState::Failed(reason) => Err(EngineError::Model(reason.clone())),
        EngineState::Stopped => Err(EngineError::Stopped),
        EngineState::Loading | EngineState::Ready(_) => Ok(()),
    }
}
