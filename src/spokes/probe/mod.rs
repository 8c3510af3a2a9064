//! The probe: whatever inspection can't foresee shows in a child process, whose death is no one else's.

mod child;
mod trial;

pub use child::ChildProbe;
pub use trial::{Stage, TrialError, trial, trial_in_stages};

use serde::{Deserialize, Serialize};

use super::life::Reason;
use super::reason_code::Code;

/// What a probe found: the one line of JSON that the child writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What follows from it.
    pub verdict: Verdict,
    /// Whether all that was computed is finite.
    pub finite: bool,
    /// Whether the answers differ from those of the post alone.
    pub differs: bool,
    /// Tokens that were compared.
    pub tokens: u32,
    /// Bytes of memory that the spoke took.
    pub resident_bytes: u64,
    /// Why it is refused, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Reason>,
}

/// What follows from a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It works and does something.
    Differs,
    /// It works and does nothing.
    Same,
    /// It doesn't work.
    Refused,
    /// It couldn't be tried, for a reason that isn't its own.
    Undecided,
}

impl Finding {
    /// One that says no.
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

    /// One that says nothing of the spoke.
    pub fn undecided(message: impl Into<String>) -> Self {
        let why = Reason::new(Code::NotProbed, message);
        Self { verdict: Verdict::Undecided, ..Self::refused(why) }
    }
}

/// How much a probe gives way to requests. With 10, a swap takes twice as long where requests keep all processors busy (0.26 s
/// for 0.13 s in the median).
const NICE: i32 = 5;

/// Bounds that a probe's process puts on itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    /// Bytes of memory of its own: what is read from files by mapping them doesn't count. `None`: no bound.
    pub memory: Option<u64>,
}

impl Confinement {
    /// Holds this process to the bounds from now on, and gives it a lower priority.
    ///
    /// # Errors
    /// The system refuses the bound on memory.
    pub fn enter(self) -> std::io::Result<()> {
        self.bound()?;
        // A courtesy; a system that doesn't know it does no harm.
        let _ = rustix::process::nice(NICE);
        Ok(())
    }

    /// Holds this process to the bounds from now on: memory, no core file, and death with its parent.
    ///
    /// # Errors
    /// The system refuses the bound on memory.
    pub fn bound(self) -> std::io::Result<()> {
        use rustix::process::{Resource, Rlimit, Signal, setrlimit};
        let bound = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
        if let Some(bytes) = self.memory {
            setrlimit(Resource::Data, bound(bytes))?;
        }
        // What follows is courtesy; a system that doesn't know it does no harm.
        let _ = setrlimit(Resource::Core, bound(0));
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        Ok(())
    }
}
