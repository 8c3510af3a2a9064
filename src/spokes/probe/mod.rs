//! The probe: runs a spoke in a child process, because inspection can't foresee every failure and a
//! crash there kills nothing else.

mod child;
mod trial;

pub use child::ChildProbe;
pub use trial::{Stage, TrialError, trial, trial_in_stages};

use serde::{Deserialize, Serialize};

use super::life::Reason;
use super::reason_code::Code;

/// Result of a probe: the one line of JSON that the child writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether everything computed is finite.
    pub finite: bool,
    /// Whether the answers differ from those of the post alone.
    pub differs: bool,
    /// Number of tokens compared.
    pub tokens: u32,
    /// Bytes of memory that the spoke took.
    pub resident_bytes: u64,
    /// Why the spoke is refused, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Reason>,
}

/// Verdict of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The spoke works and changes the answers.
    Differs,
    /// The spoke works and changes nothing.
    Same,
    /// The spoke doesn't work.
    Refused,
    /// The spoke couldn't be probed, for a reason that isn't its own.
    Undecided,
}

impl Finding {
    /// A finding that refuses the spoke.
    pub fn refused(why: Reason) -> Self {
        Self {
            verdict: Verdict::Refused,
            finite: true,
            differs: false,
            tokens: 0,
            resident_bytes: 0,
            why: Some(why),
        }
    }

    /// A finding that says nothing about the spoke.
    pub fn undecided(message: impl Into<String>) -> Self {
        let why = Reason::new(Code::NotProbed, message);
        Self { verdict: Verdict::Undecided, ..Self::refused(why) }
    }
}

/// Niceness of a probe, so that requests come first. With 10, a swap takes twice as long while
/// requests keep all processors busy (0.26 s instead of 0.13 s in the median).
const NICE: i32 = 5;

/// Limits that a probe process sets for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    /// Bytes of its own memory; memory-mapped files don't count. `None`: no limit.
    pub memory: Option<u64>,
}

impl Confinement {
    /// Applies the limits to this process from now on, and lowers its priority.
    ///
    /// # Errors
    /// The system refuses the memory limit.
    pub fn enter(self) -> std::io::Result<()> {
        self.bound()?;
        // Best effort: a system without priorities does no harm.
        let _ = rustix::process::nice(NICE);
        Ok(())
    }

    /// Applies the limits to this process from now on: memory, no core file, and death with its
    /// parent.
    ///
    /// # Errors
    /// The system refuses the memory limit.
    pub fn bound(self) -> std::io::Result<()> {
        use rustix::process::{Resource, Rlimit, Signal, setrlimit};
        let bound = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
        if let Some(bytes) = self.memory {
            setrlimit(Resource::Data, bound(bytes))?;
        }
        // Best effort: a system without these features does no harm.
        let _ = setrlimit(Resource::Core, bound(0));
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        Ok(())
    }
}
