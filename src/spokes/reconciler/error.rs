//! Why a command fails.

use crate::spokes::life::Reason;
use crate::spokes::reason_code::Code;

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
                Self::new(Code::TooLargeTogether, trouble.to_string()).hint("spokes.memory is the limit")
            }
            other => Self::new(Code::GateFailed, other.to_string()),
        }
    }
}
