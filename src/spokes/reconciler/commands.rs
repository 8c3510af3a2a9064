//! Commands that other threads send to the reconciler.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::event_loop::Reconciler;
use super::instances::{Instance, InstanceId, Source};
use super::{SpokeRow, Transition};
use crate::adapter::check_name;
use crate::spokes::leases::{Lease, Leases};
use crate::spokes::life::{Reason, State, Trigger};
use crate::spokes::reason_code::Code;
use crate::spokes::store::Kinship;

/// The inspector's code for a spoke that names another post.
const POST_MISMATCH: &str = "post_mismatch";

type Reply<T> = oneshot::Sender<Result<T, SpokeError>>;

/// A command that only the reconciler's thread can execute.
#[derive(Debug)]
#[allow(missing_docs, reason = "the methods of Spokes say what each is")]
pub enum Command {
    Hold { slots: Vec<Arc<Leases>>, beyond: bool, reply: Reply<Vec<Lease>> },
    RollBack { name: String, reply: Reply<SpokeRow> },
    Enable { name: String, reply: Reply<SpokeRow> },
    Disable { name: String, reply: Reply<SpokeRow> },
    Load { name: String, path: PathBuf, replace: bool, reply: Reply<SpokeRow> },
    Unload { name: String, reply: Reply<()> },
    Journal { behind: i64, most: usize, reply: Reply<Vec<Transition>> },
    Kin { kinship: Kinship, reply: Reply<()> },
}

/// A request that waits for leases.
#[derive(Debug)]
pub(super) struct Holding {
    pub(super) slots: Vec<Arc<Leases>>,
    /// Whether the spokes may exceed the memory limit.
    pub(super) beyond: bool,
    pub(super) reply: Reply<Vec<Lease>>,
}

/// Why a command fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpokeError {
    /// No spoke has this name.
    #[error("no spoke is named {0:?}")]
    NoSuch(String),
    /// The command isn't possible in the spoke's state.
    #[error("{0}")]
    Conflict(String),
    /// The content can't serve.
    #[error("{0}")]
    Refused(Reason),
    /// This process or its machine is in trouble; a retry may succeed.
    #[error("{0}")]
    Postponed(Reason),
    /// The file disappeared before there was a verdict.
    #[error("the file of {0:?} changed or was deleted meanwhile")]
    Gone(String),
    /// The spokes exceed the memory limit.
    #[error("the spokes take {needed} bytes in memory, and all together may take {limit}")]
    TooLarge {
        /// Bytes that the requested spokes need.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// Another generation replaced it. The caller looks the name up again.
    #[error("another generation serves now")]
    Retired,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopped,
}

impl From<SpokeError> for Reason {
    fn from(trouble: SpokeError) -> Self {
        match trouble {
            SpokeError::Refused(why) | SpokeError::Postponed(why) => why,
            SpokeError::TooLarge { .. } => {
                Self::new("too_large_together", trouble.to_string()).hint("spokes.memory is the limit")
            }
            other => Self::new("gate_failed", other.to_string()),
        }
    }
}

impl Reconciler {
    pub(super) fn asked(&mut self, ask: Command) {
        match ask {
            Command::Hold { slots, beyond, reply } => {
                self.holdings.push_back(Holding { slots, beyond, reply });
            }
            Command::RollBack { name, reply } => self.roll_back(&name, reply),
            Command::Enable { name, reply } => self.enable(&name, reply),
            Command::Disable { name, reply } => self.disable(&name, reply),
            Command::Load { name, path, replace, reply } => self.load_given(name, path, replace, reply),
            Command::Unload { name, reply } => self.unload_given(&name, reply),
            Command::Kin { kinship, reply } => {
                // The caller may have stopped waiting.
                let _ = reply.send(self.befriend(&kinship));
            }
            Command::Journal { behind, most, reply } => {
                self.write_down();
                let journal = self.store.journal(behind, most);
                let failed = |error| SpokeError::Conflict(format!("the journal can't be read: {error}"));
                // The caller may have stopped waiting.
                let _ = reply.send(journal.map_err(failed));
            }
        }
    }

    /// Records that the post holds a folder's model, and inspects generations again that were
    /// refused because that was unknown.
    fn befriend(&mut self, kinship: &Kinship) -> Result<(), SpokeError> {
        let post = match &mut self.post {
            Some(Ok(post)) => post,
            Some(Err(why)) => return Err(SpokeError::Postponed(why.clone())),
            None => return Err(SpokeError::Stopped),
        };
        if post.sha256 != kinship.post_sha256 {
            return Err(SpokeError::Conflict(format!(
                "the post that is served has the tensors {}, and those that were compared are {}",
                post.sha256, kinship.post_sha256
            )));
        }
        self.store.set_kin(kinship).map_err(|error| {
            SpokeError::Postponed(Reason::new(
                Code::NotWritten,
                format!("it can't be written to the database: {error}"),
            ))
        })?;
        Arc::make_mut(post).kin.insert(kinship.trained_on);
        tracing::info!(folder = kinship.folder, "spokes that were trained on this folder fit the post");
        let stranger =
            |life: &Instance| matches!(&life.state, State::Quarantined(why) if why.code == POST_MISMATCH);
        let strangers: Vec<InstanceId> =
            self.lives.iter().filter(|(_, life)| stranger(life)).map(|(id, _)| *id).collect();
        for id in strangers {
            self.happen(id, Trigger::Wanted);
        }
        Ok(())
    }

    fn load_given(&mut self, name: String, path: PathBuf, replace: bool, reply: Reply<SpokeRow>) {
        let refuse = |why: Reason| Err(SpokeError::Refused(why));
        let life = self.names.get(&name).and_then(|named| named.life).and_then(|life| self.lives.get(&life));
        let by_file = self.lives.values().any(|life| {
            life.name == name
                && life.entry().is_some()
                && !matches!(life.state, State::Quarantined(_) | State::Inert)
        });
        let outcome = if let Err(message) = check_name(&name) {
            refuse(Reason::new("bad_name", message))
        } else if self.settings.is_post(&name) {
            refuse(Reason::new("name_taken", "the post itself has this name"))
        } else if by_file {
            refuse(Reason::new("name_taken", format!("a file of the folder has the name {name:?}")))
        } else if life.is_some() && !replace {
            Err(SpokeError::Conflict(format!("{name:?} is loaded already; load_inplace replaces it")))
        } else {
            // Earlier requests without a verdict are superseded, and refused ones are finished.
            let before =
                |life: &Instance| life.name == name && life.entry().is_none() && life.state != State::Serving;
            let before: Vec<InstanceId> =
                self.lives.iter().filter(|(_, life)| before(life)).map(|(id, _)| *id).collect();
            for id in before {
                if self.lives[&id].state.is_open() {
                    let why = Reason::new(Code::Replaced, "a later request superseded it");
                    self.happen(id, Trigger::Withdrawn(why));
                }
                self.forget(id);
            }
            let mut life = Instance::new(name.clone(), Source::Given(path));
            life.seen = Some(std::time::Instant::now());
            let id = self.begin(life);
            // A file named in a request is complete, so it need not settle.
            self.happen(id, Trigger::Rested);
            Ok(id)
        };
        self.wait_for(outcome, reply);
    }

    fn unload_given(&mut self, name: &str, reply: Reply<()>) {
        let named = self.names.get(name).and_then(|named| named.life);
        let life = named.and_then(|id| self.lives.get(&id).map(|life| (id, life.entry().is_some())));
        let (row, answer) = oneshot::channel();
        match life {
            None => {
                // The name may exist without serving: refused, or in progress.
                let known = self.lives.values().find(|life| life.name == name);
                let trouble = known.map_or_else(
                    || SpokeError::NoSuch(name.to_owned()),
                    |life| {
                        SpokeError::Conflict(format!("{name:?} is {} and does not serve", life.state.name()))
                    },
                );
                self.answers.push((row, Err(trouble)));
            }
            Some((_, true)) => self.disable(name, row),
            Some((id, false)) => {
                self.happen(id, Trigger::Withdrawn(Reason::new("unloaded", "it was unloaded by request")));
                self.withdraw(id);
                self.wait_for(Ok(id), row);
                self.forget(id);
                self.revisit_waiting(&[name.to_owned()]);
            }
        }
        tokio::spawn(async move {
            let done = answer.await.unwrap_or(Err(SpokeError::Stopped));
            reply.send(done.map(drop))
        });
    }
}
