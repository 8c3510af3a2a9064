//! Commands to the engine's thread. They hold what was prepared on other threads: compiled
//! constraints and weights that are read. Whatever can't be prepared is refused before it becomes a
//! command.

use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::admission::Ticket;
use super::constraint::CompiledConstraint;
use super::spokes::{Answer, PreparedSpoke};
use super::{AnswerEvent, Embeddings, EngineError, Generate, Prompt, Query, Reply};
use crate::adapter::Generation;

/// A command to the engine's thread.
pub enum Command {
    /// Answer a request.
    Generate(Box<Request>),
    /// Embed texts.
    Embed {
        /// The texts.
        inputs: Vec<Prompt>,
        /// Receives the embeddings.
        reply: oneshot::Sender<Result<Embeddings, EngineError>>,
        /// Held until the request ends.
        ticket: Ticket,
    },
    /// Answer a small query.
    Query {
        /// The query.
        query: Query,
        /// Receives the reply.
        reply: oneshot::Sender<Result<Reply, EngineError>>,
    },
    /// Load a spoke.
    LoadSpoke {
        /// The spoke.
        spoke: PreparedSpoke,
        /// Receives the result.
        reply: Answer,
    },
    /// Free a spoke.
    UnloadSpoke {
        /// Its generation.
        generation: Generation,
        /// Receives the result.
        reply: Answer,
    },
    /// Stop the engine.
    Stop {
        /// When the requests that are still running are failed.
        deadline: Instant,
    },
}

/// A request that is ready to be answered.
pub struct Request {
    /// What is asked, without its constraint.
    pub generate: Generate,
    /// The compiled constraint, if the request has one.
    pub constraint: Option<Box<CompiledConstraint>>,
    /// Who asks.
    pub client: Client,
}

/// The client of an accepted request.
pub struct Client {
    /// Receives the answer's events.
    pub events: mpsc::UnboundedSender<AnswerEvent>,
    /// Held until the request ends.
    pub ticket: Ticket,
    /// When the request was sent.
    pub queued: Instant,
    /// The request's tracing span.
    pub span: Span,
}

impl Client {
    /// Whether the client has stopped listening for the answer.
    pub fn is_gone(&self) -> bool {
        self.events.is_closed()
    }

    /// Ends the request with an error before it has a lane.
    pub fn refuse(self, error: EngineError) {
        let Self { events, ticket, span, .. } = self;
        // A client that sees the error may send the next request at once.
        drop(ticket);
        span.in_scope(|| tracing::debug!(%error, "the engine refuses it"));
        let _ = events.send(AnswerEvent::Failed(error));
    }
}

impl Command {
    /// Answers the command with an error instead of executing it.
    pub fn refuse(self, error: &EngineError) {
        match self {
            Self::Generate(request) => request.client.refuse(error.clone()),
            Self::Embed { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::Query { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::LoadSpoke { reply, .. } | Self::UnloadSpoke { reply, .. } => {
                drop(reply.send(Err(error.clone())));
            }
            Self::Stop { .. } => {}
        }
    }
}
