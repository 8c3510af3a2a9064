//! The content of an instance, where it comes from, and what it may displace.

use std::path::PathBuf;

use crate::adapter::Generation;
use crate::spokes::life::Reason;
use crate::spokes::reason_code::Code;
use crate::spokes::store::Facts;

/// Source of an instance's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An entry of the folder.
    Entry(String),
    /// A path from a request; it is read once.
    Given(PathBuf),
    /// The copy of what served before the start. Its entry isn't known: the first listing of the
    /// folder shows whether there is one.
    Copy(PathBuf),
}

/// What a generation may displace. If something else serves by then, that came later and stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Anything.
    Any,
    /// Nothing: the name falls back to an earlier generation.
    Nothing,
    /// This generation, which is rolled back.
    Only(Generation),
}

impl Over {
    pub fn allows(self, current: Option<Generation>) -> bool {
        match self {
            Self::Any => true,
            Self::Nothing => current.is_none(),
            Self::Only(generation) => current == Some(generation),
        }
    }
}

/// The content of an instance, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub generation: Generation,
    /// The pinned copy.
    pub pinned: Option<PathBuf>,
    /// The file that the engine loads.
    pub served: Option<PathBuf>,
    pub facts: Option<Facts>,
}

/// A content that passed inspection: all that a load needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    pub generation: Generation,
    pub pinned: PathBuf,
    pub served: PathBuf,
    pub facts: Facts,
}

/// Reason of an instance whose name another generation got.
pub fn replaced() -> Reason {
    Reason::new(Code::Replaced, "another content serves under its name")
}
