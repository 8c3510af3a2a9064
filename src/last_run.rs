//! Records in the state folder how a run began and ended. A run without a recorded end crashed or
//! was killed.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::atomic_file;

/// Name of the file in the state folder.
const FILE: &str = "last-run.json";

/// One run of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// Its process id.
    pub process: u32,
    /// Boot id of the system at that time. Process ids are reused after a reboot.
    pub boot: Option<String>,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// When it ended.
    pub ended: Option<u64>,
    /// Why it ended, unless it was told to stop.
    pub error: Option<String>,
    /// When the latest run without a recorded end began, if there was one before this run.
    pub crash: Option<u64>,
}

impl LastRun {
    /// Whether the run's process is still alive.
    pub fn runs(&self) -> bool {
        self.ended.is_none() && self.boot == boot() && Path::new(&format!("/proc/{}", self.process)).exists()
    }
}

/// Reads the record of the last run.
pub fn read(state: &Path) -> Option<LastRun> {
    serde_json::from_slice(&fs_err::read(state.join(FILE)).ok()?).ok()
}

/// The current run, until it ends.
#[derive(Debug)]
pub struct ThisRun {
    path: PathBuf,
    run: LastRun,
}

/// Records that a run begins. The caller must hold the lock of the state folder.
pub fn begin(state: &Path) -> ThisRun {
    let before = read(state);
    let crash = before.as_ref().and_then(|run| match run.ended {
        None => Some(run.started),
        Some(_) => run.crash,
    });
    if let Some(run) = before.filter(|run| run.ended.is_none()) {
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(run.started);
        tracing::warn!(
            began = %humantime::format_rfc3339_seconds(at),
            process = run.process,
            "the last run ended without a word: it crashed, was killed, or the machine lost power"
        );
    }
    let run = LastRun {
        process: std::process::id(),
        boot: boot(),
        started: now(),
        ended: None,
        error: None,
        crash,
    };
    let this = ThisRun { path: state.join(FILE), run };
    this.write();
    this
}

impl ThisRun {
    /// Records the end of the run.
    pub fn end(mut self, error: Option<String>) {
        (self.run.ended, self.run.error) = (Some(now()), error);
        self.write();
    }

    /// Only `bespoke doctor` reads this file, so a failed write is logged and ignored.
    fn write(&self) {
        let written = serde_json::to_vec_pretty(&self.run).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|text| atomic_file::write(&self.path, &text)) {
            tracing::warn!(path = %self.path.display(), %error, "the run can't be noted");
        }
    }
}

fn boot() -> Option<String> {
    fs_err::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned())
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_left_no_end_is_a_crash_that_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        assert_eq!(read(state), None);
        let first = begin(state);
        let found = read(state).unwrap();
        assert!(found.runs() && found.crash.is_none(), "{found:?}");
        drop(first);
        let second = begin(state);
        assert_eq!(read(state).unwrap().crash, Some(found.started));
        second.end(None);
        let found = read(state).unwrap();
        assert!(!found.runs() && found.ended.is_some() && found.error.is_none(), "{found:?}");
        begin(state).end(Some("no more".to_owned()));
        assert_eq!(read(state).unwrap().error.as_deref(), Some("no more"));
    }
}
