//! The pinned copies of contents, and the forms of them that the engine loads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::adapter::Generation;
use crate::spokes::quarantine;

/// The folder of the pinned copies.
#[derive(Debug)]
pub(super) struct Copies {
    folder: PathBuf,
    sweep_is_due: bool,
}

impl Copies {
    /// Copies that an earlier process left are swept first.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, sweep_is_due: true }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Path of a generation's pinned copy.
    pub(super) fn path(&self, generation: Generation) -> PathBuf {
        self.folder.join(generation.to_string())
    }

    /// The existing files of a generation: the pinned copy and its form for the engine.
    pub(super) fn of(&self, generation: Generation) -> Vec<PathBuf> {
        let pinned = self.path(generation);
        let served = served_form(&pinned);
        [pinned, served].into_iter().filter(|path| path.exists()).collect()
    }

    /// The first of them.
    pub(super) fn pinned(&self, generation: Generation) -> Option<PathBuf> {
        self.of(generation).into_iter().next()
    }

    /// The file that the engine loads, if it exists.
    pub(super) fn served(&self, generation: Generation) -> Option<PathBuf> {
        self.of(generation).into_iter().rev().find(|path| path.is_file())
    }

    /// Some may not be needed any more: they are swept at the end of the turn.
    pub(super) fn sweep_later(&mut self) {
        self.sweep_is_due = true;
    }

    pub(super) fn sweep_is_due(&self) -> bool {
        self.sweep_is_due
    }

    /// Removes copies that are not in `needed`.
    pub(super) fn sweep(&mut self, needed: &BTreeSet<PathBuf>) {
        self.sweep_is_due = false;
        if let Err(error) = quarantine::sweep(&self.folder, needed) {
            tracing::warn!(%error, "unused copies of spokes can't be removed");
        }
    }
}

/// Path of the engine's form of a pinned copy, if that isn't the copy itself.
pub(super) fn served_form(pinned: &Path) -> PathBuf {
    let mut name = pinned.as_os_str().to_owned();
    name.push(".gguf");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::super::state::instance::tests::generation;
    use super::*;
    use crate::atomic_file;

    #[test]
    fn the_engine_loads_the_converted_form_if_there_is_one() {
        let root = tempfile::tempdir().unwrap();
        let mut copies = Copies::new(root.path().to_owned());
        let [gguf, folder, gone] = ["gguf", "folder", "gone"].map(generation);
        atomic_file::write(&copies.path(gguf), b"x").unwrap();
        atomic_file::write(&copies.path(folder).join("adapter_config.json"), b"x").unwrap();
        assert_eq!(copies.served(gguf), Some(copies.path(gguf)));
        assert_eq!((copies.pinned(folder), copies.served(folder)), (Some(copies.path(folder)), None));
        let converted = served_form(&copies.path(folder));
        atomic_file::write(&converted, b"x").unwrap();
        assert_eq!(copies.of(folder), [copies.path(folder), converted.clone()]);
        assert_eq!(copies.served(folder), Some(converted));
        assert_eq!((copies.pinned(gone), copies.served(gone)), (None, None));
        assert!(copies.sweep_is_due());
        copies.sweep(&copies.of(gguf).into_iter().collect());
        assert_eq!((copies.of(folder), copies.of(gguf).len()), (vec![], 1));
        assert!(!copies.sweep_is_due());
        copies.sweep_later();
        assert!(copies.sweep_is_due());
    }
}
