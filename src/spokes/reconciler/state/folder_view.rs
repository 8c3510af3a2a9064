//! The folder as the reconciler sees it: when it is looked at, whether it can be read, and what has
//! changed in it.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::spokes::folder::{self, Change, Fingerprint, Listing, Noticed, Scan, Watcher};

/// Most entries that one turn looks at.
const LOOKS: usize = 256;

/// How the folder is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Following {
    pub folder: PathBuf,
    /// Whether file system events are used.
    pub events: bool,
    /// How often the whole folder is listed in addition to events, and without them.
    pub with_events: Duration,
    pub without_events: Duration,
    /// How long an entry must stay unchanged.
    pub settle: Duration,
    /// Most entries that are followed.
    pub most: usize,
}

/// The folder's view.
#[derive(Debug)]
pub struct FolderView {
    following: Following,
    scan: Scan,
    watcher: Option<Watcher>,
    listed_at: Option<Instant>,
    /// Device and inode of the folder at the last listing.
    identity: Option<(u64, u64)>,
    is_readable: bool,
    changes: VecDeque<Change>,
}

impl FolderView {
    /// A folder that wasn't looked at yet.
    pub fn new(following: Following) -> Self {
        let scan = Scan::new(following.settle, following.most);
        Self {
            following,
            scan,
            watcher: None,
            listed_at: None,
            identity: None,
            is_readable: true,
            changes: VecDeque::new(),
        }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.following.folder
    }

    /// Most entries that are followed.
    pub fn most(&self) -> usize {
        self.following.most
    }

    /// Whether its entries are known.
    pub fn was_listed(&self) -> bool {
        self.identity.is_some()
    }

    /// Starts watching the folder. If that fails, the folder is listed more often.
    pub fn watch(&mut self) {
        if !self.following.events || self.watcher.is_some() {
            return;
        }
        match Watcher::start(self.path()) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => {
                let folder = self.path().display();
                tracing::warn!(%folder, %error, "file system events are not available; the spokes folder is polled");
            }
        }
    }

    /// Waits for file system events, if the folder is watched.
    pub async fn noticed(&self) -> Noticed {
        match &self.watcher {
            Some(watcher) => watcher.noticed().await,
            None => std::future::pending().await,
        }
    }

    /// Interval between listings of the whole folder.
    fn pace(&self) -> Duration {
        if self.watcher.is_some() { self.following.with_events } else { self.following.without_events }
    }

    /// Time of the next look.
    pub fn next_look(&self, now: Instant) -> Instant {
        if !self.changes.is_empty() {
            return now;
        }
        let list = self.listed_at.map_or(now, |listed| listed + self.pace());
        self.scan.next_due().map_or(list, |due| due.min(list))
    }

    /// Handles file system events.
    pub fn hear(&mut self, now: Instant, noticed: &Noticed) {
        if noticed.all {
            self.listed_at = None;
        }
        for (name, finished) in &noticed.names {
            self.look_at(now, name, *finished);
        }
    }

    fn look_at(&mut self, now: Instant, entry: &str, finished: bool) {
        // An entry whose metadata can't be read is not gone. The next listing reports the error.
        if let Ok(print) = folder::look(self.path(), entry) {
            self.changes.extend(self.scan.looked(now, entry, print, finished));
        }
    }

    /// Looks at all entries that are due. If the whole folder is, lists it and returns whether that
    /// was possible.
    pub fn look(&mut self, now: Instant) -> Option<bool> {
        for name in self.scan.due(now, LOOKS) {
            self.look_at(now, &name, false);
        }
        let is_due = self.listed_at.is_none_or(|listed| now.saturating_duration_since(listed) >= self.pace());
        is_due.then(|| {
            self.take_in(now, folder::list(self.path()));
            if self.is_readable {
                // The folder may not have existed before.
                self.watch();
            }
            self.is_readable
        })
    }

    /// Takes in a listing of the whole folder. An unreadable folder says nothing about its entries:
    /// an unmounted disk must not take every spoke out of service.
    fn take_in(&mut self, now: Instant, listing: io::Result<Listing>) {
        let was_readable = std::mem::replace(&mut self.is_readable, false);
        self.listed_at = Some(now);
        match listing {
            // The mount point of an unmounted disk is an empty folder on another device.
            Ok(listing) if listing.entries.is_empty() && self.is_elsewhere(listing.folder) => {
                if was_readable {
                    tracing::warn!(
                        "the spokes folder was replaced by an empty one on another device; serving spokes are kept"
                    );
                }
            }
            Ok(listing) => {
                self.is_readable = true;
                if self.identity.replace(listing.folder).is_some_and(|before| before != listing.folder) {
                    // The watcher still watches the previous folder.
                    self.watcher = None;
                }
                if listing.unnameable > 0 || listing.cut {
                    tracing::warn!(
                        unnameable = listing.unnameable,
                        cut = listing.cut,
                        "some files in the folder of spokes are left alone: names are UTF-8, and there are limits"
                    );
                }
                self.changes.extend(self.scan.listed(now, listing.entries));
            }
            Err(error) => {
                if was_readable {
                    tracing::warn!(%error, "the spokes folder can't be read; serving spokes are kept");
                }
            }
        }
        if !self.is_readable {
            self.watcher = None;
        }
    }

    /// Whether the folder is on another device than before.
    fn is_elsewhere(&self, (device, _): (u64, u64)) -> bool {
        self.identity.is_some_and(|(before, _)| before != device)
    }

    /// The next change.
    pub fn next_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// The present fingerprint of an entry, if it exists and can be looked at.
    pub fn print(&self, entry: &str) -> Option<Fingerprint> {
        folder::look(self.path(), entry).ok().flatten()
    }

    /// Restores an entry that came to rest before this process started.
    pub fn remember(&mut self, entry: &str, print: Fingerprint) {
        self.scan.remember(entry.to_owned(), print);
    }

    /// Looks at an entry as if it had just appeared.
    pub fn revisit(&mut self, now: Instant, entry: &str) {
        self.scan.forget(entry);
        self.look_at(now, entry, true);
    }

    /// An entry has changed since it came to rest: waits until it rests again. It has an instance
    /// already, so only its coming to rest is a change. An entry that can't be read now is found
    /// later.
    pub fn unsettle(&mut self, now: Instant, entry: &str) {
        self.scan.forget(entry);
        if let Ok(print) = folder::look(self.path(), entry) {
            let _ = self.scan.looked(now, entry, print, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: (u64, u64) = (1, 10);
    const SECOND: Duration = Duration::from_secs(1);

    fn view() -> FolderView {
        FolderView::new(Following {
            folder: PathBuf::from("/nowhere/at/all"),
            events: false,
            with_events: 60 * SECOND,
            without_events: 2 * SECOND,
            settle: SECOND / 2,
            most: 9,
        })
    }

    fn listing(folder: (u64, u64), entries: &[&str]) -> Listing {
        let entries = entries.iter().map(|name| ((*name).to_owned(), Fingerprint::default())).collect();
        Listing { folder, entries, ..Listing::default() }
    }

    fn changes(view: &mut FolderView) -> Vec<Change> {
        std::iter::from_fn(|| view.next_change()).collect()
    }

    #[test]
    fn a_folder_that_cannot_be_read_or_is_unmounted_says_nothing_about_its_entries() {
        let (mut view, now) = (view(), Instant::now());
        view.take_in(now, Ok(listing(HERE, &["a"])));
        assert!(view.is_readable && view.was_listed());
        assert_eq!(changes(&mut view), [Change::Moved("a".to_owned())]);
        let later = now + 10 * SECOND;
        view.take_in(later, Err(io::ErrorKind::PermissionDenied.into()));
        assert!(!view.is_readable);
        // The empty mount point is on another device.
        view.take_in(later, Ok(listing((2, 10), &[])));
        assert!(!view.is_readable);
        assert_eq!(changes(&mut view), []);
        // A folder on another device with files in it is the new folder.
        view.take_in(later, Ok(listing((2, 10), &["a"])));
        assert!(view.is_readable);
        view.take_in(later, Ok(listing((2, 11), &[])));
        view.take_in(later + SECOND, Ok(listing((2, 11), &[])));
        assert_eq!(changes(&mut view).last(), Some(&Change::Gone("a".to_owned())));
    }

    #[test]
    fn the_next_look_is_at_what_is_due_first() {
        let (mut view, now) = (view(), Instant::now());
        assert_eq!(view.next_look(now), now, "it was never listed");
        view.take_in(now, Ok(listing(HERE, &[])));
        assert_eq!(view.next_look(now), now + 2 * SECOND);
        view.take_in(now, Ok(listing(HERE, &["a"])));
        assert_eq!(view.next_look(now), now, "there is a change");
        changes(&mut view);
        assert_eq!(view.next_look(now), now + SECOND / 2, "it may have settled by then");
        view.hear(now, &Noticed { all: true, ..Noticed::default() });
        assert_eq!(view.next_look(now), now, "events were lost");
    }

    #[test]
    fn what_is_remembered_is_no_change_until_it_is_unsettled() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.gguf");
        crate::atomic_file::write(&path, b"one").unwrap();
        let mut view = FolderView::new(Following { folder: root.path().to_owned(), ..view().following });
        let now = Instant::now();
        let print = view.print("a.gguf").unwrap();
        view.remember("a.gguf", print.clone());
        assert_eq!((view.look(now), changes(&mut view)), (Some(true), vec![]));
        view.unsettle(now, "a.gguf");
        assert_eq!((view.look(now), changes(&mut view)), (None, vec![]), "it has an instance already");
        assert_eq!(view.look(now + SECOND), None);
        assert_eq!(changes(&mut view), [Change::Rested("a.gguf".to_owned(), print)]);
        view.revisit(now, "a.gguf");
        assert_eq!(changes(&mut view), [Change::Moved("a.gguf".to_owned())]);
        fs_err::remove_dir_all(root.path()).unwrap();
        assert_eq!((view.look(now + 9 * SECOND), view.print("a.gguf")), (Some(false), None));
    }
}
