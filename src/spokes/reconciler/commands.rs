//! Commands that other threads send to the reconciler.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::error::SpokeError;
use super::parts::Reconciler;
use super::state::residency::Holding;
use super::{SpokeRow, Transition};
use crate::spokes::leases::{Lease, Leases};
use crate::spokes::life::{Reason, Trigger};
use crate::spokes::reason_code::Code;
use crate::spokes::store::Kinship;

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

impl Reconciler {
    /// Executes a command.
    pub(super) fn asked(&mut self, command: Command) {
        match command {
            Command::Hold { slots, beyond, reply } => self.residency.ask(Holding { slots, beyond, reply }),
            Command::RollBack { name, reply } => self.roll_back(&name, reply),
            Command::Enable { name, reply } => self.enable(&name, reply),
            Command::Disable { name, reply } => self.disable(&name, reply),
            Command::Load { name, path, replace, reply } => self.load_given(&name, path, replace, reply),
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
        for id in self.instances.ids(|instance| instance.is_refused_for(&Code::PostMismatch)) {
            self.happen(id, Trigger::Wanted);
        }
        Ok(())
    }
}
