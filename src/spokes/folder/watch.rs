//! File system events of the folder: collects names of entries to check until the reconciler asks.
//!
//! Events only say where to look. The reconciler always checks the entry itself, so a lost event
//! costs time but not correctness.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::counts;
use crate::failpoints;

/// Most names that are collected. With more, the whole folder is listed instead.
const MOST: usize = 4_096;

/// Events since the last query.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Noticed {
    /// Names of changed entries, each with whether the last event was a rename that put it there
    /// complete.
    pub names: BTreeMap<String, bool>,
    /// Whether events were lost and the whole folder has to be listed.
    pub all: bool,
}

impl Noticed {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.all
    }

    /// Records one event about paths in `folder`.
    fn take(&mut self, folder: &Path, event: &Event) {
        if event.need_rescan() {
            self.all = true;
        }
        // Reading changes nothing. Closing a file after writing doesn't prove that it is finished:
        // it may be opened again.
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
                // This may be the configuration of the safetensors file next to it.
                self.names.insert(format!("{stem}.safetensors"), false);
            }
        }
        if self.names.len() > MOST {
            self.names.clear();
            self.all = true;
        }
    }
}

/// Watches the folder until it is dropped.
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
    /// Watches `folder` and its subfolders for changes.
    ///
    /// # Errors
    /// The system can't watch the folder, or has no watches left.
    pub fn start(folder: &Path) -> notify::Result<Self> {
        // Events carry canonical paths.
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

    /// Waits until there is an event, and takes all that were collected.
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
        // Writing after a rename means that the file has to settle.
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
        // The atomic writer renames.
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
