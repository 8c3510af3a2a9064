//! The system's word on changes in the folder: names to look at, gathered until somebody asks.
//!
//! Events only say where to look: what is there is always found out by looking. So a lost event costs time, never truth.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::counts;
use crate::failpoints;

/// Names that are remembered; with more of them, the whole folder is looked at instead.
const MOST: usize = 4_096;

/// What the system has told since it was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Noticed {
    /// Entries that something has happened to, and whether the last thing was that it was put there whole by a rename.
    pub names: BTreeMap<String, bool>,
    /// Whether events were lost: the whole folder is to be looked at.
    pub all: bool,
}

impl Noticed {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.all
    }

    /// Takes in one event about paths in `folder`.
    fn take(&mut self, folder: &Path, event: &Event) {
        if event.need_rescan() {
            self.all = true;
        }
        // Reading changes nothing. A file that is closed after writing is no more finished than before: it may be opened again.
        if matches!(event.kind, EventKind::Access(_)) {
            return;
        }
        let renamed = |at: usize| match event.kind {
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => true,
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => at == 1,
            _ => false,
        };
        for (at, path) in event.paths.iter().enumerate() {
            let Ok(inside) = path.strip_prefix(folder) else { continue };
            let mut parts = inside.components();
            let Some(name) = parts.next().and_then(|part| part.as_os_str().to_str()) else {
                // The folder itself.
                self.all = true;
                continue;
            };
            if counts(name) {
                let whole = parts.next().is_none() && renamed(at);
                self.names.insert(name.to_owned(), whole);
            } else if let Some(stem) = name.strip_suffix(".json") {
                // Perhaps the configuration of the file that it stands beside.
                self.names.insert(format!("{stem}.safetensors"), false);
            }
        }
        if self.names.len() > MOST {
            self.names.clear();
            self.all = true;
        }
    }
}

/// Listens to the system until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    heard: Arc<Heard>,
    _system: RecommendedWatcher,
}

#[derive(Debug, Default)]
struct Heard {
    noticed: Mutex<Noticed>,
    news: Notify,
}

impl Watcher {
    /// Listens for changes in `folder` and in the folders in it.
    ///
    /// # Errors
    /// The system can't watch it, or has no watch left.
    pub fn start(folder: &Path) -> notify::Result<Self> {
        // Events have real paths.
        let real: PathBuf = fs_err::canonicalize(folder).map_err(notify::Error::io)?;
        let heard = Arc::new(Heard::default());
        let teller = Arc::clone(&heard);
        let told = real.clone();
        let mut system = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if failpoints::is_blind("watch.deaf") {
                return;
            }
            let mut noticed = teller.noticed.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Ok(event) => noticed.take(&told, &event),
                Err(error) => {
                    tracing::warn!(%error, "the system lost sight of the folder of spokes");
                    noticed.all = true;
                }
            }
            if !noticed.is_empty() {
                teller.news.notify_one();
            }
        })?;
        system.watch(&real, RecursiveMode::Recursive)?;
        Ok(Self { heard, _system: system })
    }

    /// Waits until there is something, and takes it.
    pub async fn noticed(&self) -> Noticed {
        loop {
            let noticed =
                std::mem::take(&mut *self.heard.noticed.lock().unwrap_or_else(PoisonError::into_inner));
            if !noticed.is_empty() {
                return noticed;
            }
            self.heard.news.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{AccessKind, AccessMode, CreateKind, Flag, RemoveKind};
    use std::time::Duration;

    fn noticed(events: &[(EventKind, &[&str])]) -> Noticed {
        let mut noticed = Noticed::default();
        for (kind, paths) in events {
            let event =
                paths.iter().fold(Event::new(*kind), |event, path| event.add_path(PathBuf::from(path)));
            noticed.take(Path::new("/s"), &event);
        }
        noticed
    }

    #[test]
    fn events_become_names_and_a_rename_into_the_folder_is_told_apart() {
        let name = |mode| EventKind::Modify(ModifyKind::Name(mode));
        let found = noticed(&[
            (EventKind::Create(CreateKind::File), &["/s/a.gguf"]),
            (EventKind::Access(AccessKind::Close(AccessMode::Write)), &["/s/only-read.gguf"]),
            (EventKind::Create(CreateKind::File), &["/s/.hidden", "/elsewhere/b.gguf"]),
            (name(RenameMode::To), &["/s/moved-in.gguf"]),
            (name(RenameMode::Both), &["/s/x.gguf.tmp", "/s/x.gguf"]),
            (name(RenameMode::Both), &["/s/old.gguf", "/s/new.gguf"]),
            (EventKind::Create(CreateKind::File), &["/s/peft/adapter_model.safetensors"]),
            (name(RenameMode::To), &["/s/peft/adapter_config.json"]),
            (name(RenameMode::To), &["/s/side.json"]),
        ]);
        let expected = [
            ("a.gguf", false),
            ("moved-in.gguf", true),
            ("new.gguf", true),
            ("old.gguf", false),
            ("peft", false),
            ("side.safetensors", false),
            ("x.gguf", true),
        ];
        assert_eq!(found.names, expected.map(|(name, whole)| (name.to_owned(), whole)).into());
        assert!(!found.all);
        // Whoever goes on writing after a rename has to come to rest.
        let found =
            noticed(&[(name(RenameMode::To), &["/s/a"]), (EventKind::Modify(ModifyKind::Any), &["/s/a"])]);
        assert_eq!(found.names, [("a".to_owned(), false)].into());
    }

    #[test]
    fn lost_events_and_too_many_of_them_mean_the_whole_folder() {
        let mut lost = Noticed::default();
        lost.take(Path::new("/s"), &Event::new(EventKind::Other).set_flag(Flag::Rescan));
        assert!(lost.all);
        assert!(noticed(&[(EventKind::Remove(RemoveKind::Folder), &["/s"])]).all);
        let mut many = Noticed::default();
        for n in 0..=MOST {
            let path = PathBuf::from(format!("/s/{n}"));
            many.take(Path::new("/s"), &Event::new(EventKind::Create(CreateKind::File)).add_path(path));
        }
        assert!(many.all && many.names.is_empty());
    }

    #[tokio::test]
    async fn the_system_tells_of_writes_renames_and_new_folders() {
        let root = tempfile::tempdir().unwrap();
        let watcher = Watcher::start(root.path()).unwrap();
        let next = async |wanted: &str| {
            let look = async {
                loop {
                    if let Some(whole) = watcher.noticed().await.names.get(wanted) {
                        return *whole;
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(10), look).await.expect("the system tells of it")
        };
        // The durable writer renames.
        crate::atomic_file::write(&root.path().join("a.gguf"), b"x").unwrap();
        assert!(next("a.gguf").await);
        let mut open = std::fs::OpenOptions::new().append(true).open(root.path().join("a.gguf")).unwrap();
        std::io::Write::write_all(&mut open, b"more").unwrap();
        assert!(!next("a.gguf").await);
        fs_err::create_dir(root.path().join("peft")).unwrap();
        next("peft").await;
        crate::atomic_file::write(&root.path().join("peft/adapter_config.json"), b"{}").unwrap();
        next("peft").await;
        fs_err::remove_file(root.path().join("a.gguf")).unwrap();
        next("a.gguf").await;
    }
}
