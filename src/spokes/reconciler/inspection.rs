//! The inspection of one file, on a thread of its own: copy it under its hash, inspect the copy, and
//! convert it to the form that the engine loads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::copies::served_form;
use super::marks::Mark;
use super::state::content::Inspected;
use super::state::jobs::Failed;
use crate::adapter::refusal::{is_trouble, is_trouble_at_home, plain};
use crate::adapter::{Generation, Limits, Pinned, Post, Refusal, inspect, pin, to_served};
use crate::failpoints;
use crate::spokes::folder::{self, Fingerprint};
use crate::spokes::life::Reason;
use crate::spokes::reason_code::Code;
use crate::spokes::store::Facts;

/// Source of a generation's bytes.
#[derive(Debug)]
pub(super) enum Bytes {
    /// An entry of the folder, with its fingerprint when it came to rest.
    Entry { folder: PathBuf, entry: String, print: Option<Fingerprint> },
    /// A file from a request.
    Path(PathBuf),
    /// A pinned copy.
    Copy(PathBuf),
}

/// An inspection.
#[derive(Debug)]
pub(super) struct Inspection {
    pub(super) bytes: Bytes,
    /// The folder of the pinned copies.
    pub(super) staged: PathBuf,
    pub(super) limits: Limits,
    /// Generations that crash the process.
    pub(super) banned: BTreeMap<Generation, Reason>,
}

impl Inspection {
    /// Inspects it. The time that this takes depends on the file.
    pub(super) fn run(&self, post: Result<Arc<Post>, Reason>) -> Result<Inspected, Failed> {
        let Self { staged, limits, .. } = self;
        let post = post.map_err(|why| Failed::refused(None, why))?;
        let pinned = self.pin()?;
        if let Some(why) = self.banned.get(&pinned.generation) {
            return Err(Failed::refused(Some(pinned), why.clone()));
        }
        // If the process dies, the next one learns which content it was inspecting.
        let _mark = Mark::set(staged, pinned.generation)
            .map_err(|error| Failed::refused(Some(pinned.clone()), not_copied(&error)))?;
        failpoints::point("spoke.inspecting", &pinned.generation.short());
        let refused = |refusal: Refusal| Failed::refused(Some(pinned.clone()), blamed(refusal, staged));
        let mut spoke = inspect(&pinned.path, Some(&post), limits).map_err(refused)?;
        let served = if spoke.format.is_served() {
            pinned.path.clone()
        } else {
            let served = served_form(&pinned.path);
            spoke = to_served(&pinned.path, &served, &post, limits).map_err(refused)?;
            served
        };
        let Pinned { generation, path } = pinned;
        Ok(Inspected { generation, pinned: path, served, facts: Facts::from(&spoke) })
    }

    fn pin(&self) -> Result<Pinned, Failed> {
        let Self { staged, limits, .. } = self;
        let refused = |refusal: Refusal| Failed::refused(None, blamed(refusal, staged));
        match &self.bytes {
            Bytes::Copy(path) => {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let generation: Generation = name.trim_end_matches(".gguf").parse().map_err(|_| {
                    Failed::refused(None, Reason::new(Code::NoCopy, "its copy has an unexpected name"))
                })?;
                Ok(Pinned { generation, path: path.clone() })
            }
            Bytes::Path(path) => pin(path, staged, limits).map_err(refused),
            Bytes::Entry { folder, entry, print } => {
                let pinned = pin(&folder.join(entry), staged, limits);
                // The outcome belongs to a generation that has been replaced since. If the entry
                // can't be read, it may be unchanged.
                if folder::look(folder, entry).is_ok_and(|now| now != *print) {
                    return Err(Failed::Changed);
                }
                pinned.map_err(refused)
            }
        }
    }
}

/// The reason of a refusal: the file's fault, or trouble that says nothing about the file.
fn blamed(refusal: Refusal, staged: &Path) -> Reason {
    let ours = refusal.path.starts_with(staged);
    match refusal.io() {
        Some(error) if ours && is_trouble_at_home(error) => not_copied(error),
        Some(e) if is_trouble(e) => Reason::new(Code::NotRead, format!("can't be read: {}", plain(e))),
        _ => refusal.into(),
    }
}

fn not_copied(error: &std::io::Error) -> Reason {
    Reason::new(Code::NotCopied, format!("the state directory can't keep its copy: {}", plain(error)))
        .hint("check disk space, limits and permissions of paths.state")
}

/// Runs blocking work on its own thread. A failure to start the thread says nothing about the
/// content.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Reason> {
    let (send, receive) = oneshot::channel();
    let run = move || {
        // The reconciler may have stopped.
        let _ = send.send(work());
    };
    let start = |()| std::thread::Builder::new().name("spoke-examiner".to_owned()).spawn(run);
    let started = failpoints::trouble("thread").and_then(start);
    started.map_err(|error| {
        Reason::new(Code::NotRead, format!("the system gives no thread to examine it: {error}"))
    })?;
    receive.await.map_err(|_| Reason::new(Code::ExaminerFailed, "the examiner panicked; see the log"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Error;

    fn code(path: &str, error: Error) -> Code {
        blamed(Refusal::new(Path::new(path), error), Path::new("/state/staged")).code
    }

    #[test]
    fn trouble_of_the_disk_is_not_held_against_the_file() {
        let full = || Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let denied = || Error::from_raw_os_error(rustix::io::Errno::ACCESS.raw_os_error());
        assert_eq!(code("/state/staged/x", full()), Code::NotCopied);
        assert_eq!(code("/state/staged/x", denied()), Code::NotCopied, "the state folder is ours");
        assert_eq!(code("/spokes/x", full()), Code::NotRead);
        assert_eq!(code("/spokes/x", denied()), "unreadable", "its owner can change that");
    }

    #[tokio::test]
    async fn work_that_panics_has_a_reason() {
        assert_eq!(aside(|| 7).await, Ok(7));
        let why = aside(|| -> u8 { panic!("out of order") }).await.unwrap_err();
        assert_eq!(why.code, Code::ExaminerFailed);
    }
}
