//! Marks on disk: which content was being inspected if the process dies.

use std::path::{Path, PathBuf};

use crate::adapter::Generation;
use crate::atomic_file;

/// A file that says which content is being inspected, until it is dropped.
pub(super) struct Mark(PathBuf);

/// Prefix of the marks' file names.
const MARK: &str = "inspecting-";

/// Removes a mark of an earlier process.
pub(super) fn unmark(staged: &Path, generation: Generation) -> std::io::Result<()> {
    fs_err::remove_file(staged.join(format!("{MARK}{generation}")))
}

impl Mark {
    /// Marks a generation.
    pub(super) fn set(staged: &Path, generation: Generation) -> std::io::Result<Self> {
        let path = staged.join(format!("{MARK}{generation}"));
        atomic_file::write(&path, b"")?;
        Ok(Self(path))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Err(error) = fs_err::remove_file(&self.0) {
            tracing::warn!(%error, "the end of an inspection can't be noted");
        }
    }
}

/// Generations that were being inspected when a process died.
pub(super) fn marks(staged: &Path) -> std::io::Result<Vec<Generation>> {
    let entries = match fs_err::read_dir(staged) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut marked = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(generation) = name.to_str().and_then(|name| name.strip_prefix(MARK)?.parse().ok()) {
            marked.push(generation);
        }
    }
    Ok(marked)
}
