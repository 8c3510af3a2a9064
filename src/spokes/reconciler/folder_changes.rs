//! Scans the folder, and applies its changes to lives.

use std::time::{Duration, Instant};

use super::event_loop::Reconciler;
use super::instances::{Instance, Source};
use crate::spokes::folder::{self, Change, Fingerprint, Noticed, Watcher};
use crate::spokes::life::{Reason, State, Trigger};
use crate::spokes::reason_code::Code;
use crate::spokes::store::Write;

/// Most entries that one turn looks at.
const LOOKS: usize = 256;

impl Reconciler {
    /// Starts watching the folder. If that fails, the folder is listed more often.
    pub(super) fn start_watching(&mut self) {
        if !self.settings.spokes.events {
            return;
        }
        match Watcher::start(&self.settings.folder) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => {
                let folder = self.settings.folder.display();
                tracing::warn!(%folder, %error, "file system events are not available; the spokes folder is polled");
            }
        }
    }

    /// Interval between listings of the whole folder.
    fn pace(&self) -> Duration {
        if self.watcher.is_some() { self.settings.spokes.reconcile } else { self.settings.spokes.poll }
    }

    /// Time of the next look at the folder.
    pub(super) fn next_look(&self) -> Instant {
        let now = Instant::now();
        if !self.changes.is_empty() || (!self.preload.is_empty() && self.engine_is_ready()) {
            return now;
        }
        let list = self.listed_at.map_or(now, |listed| listed + self.pace());
        let next = self.scan.next_due().into_iter().chain(self.next_try());
        next.fold(list, Instant::min)
    }

    /// Handles file system events.
    pub(super) fn noticed(&mut self, noticed: &Noticed) {
        if noticed.all {
            self.listed_at = None;
        }
        let now = Instant::now();
        for (name, finished) in &noticed.names {
            self.look_at(now, name, *finished);
        }
    }

    fn look_at(&mut self, now: Instant, entry: &str, finished: bool) {
        // An entry whose metadata can't be read is not gone. The next listing reports the error.
        if let Ok(print) = folder::look(&self.settings.folder, entry) {
            self.changes.extend(self.scan.looked(now, entry, print, finished));
        }
    }

    /// Looks at all entries that are due.
    pub(super) fn look(&mut self) {
        let now = Instant::now();
        for name in self.scan.due(now, LOOKS) {
            self.look_at(now, &name, false);
        }
        if self.listed_at.is_none_or(|listed| now.duration_since(listed) >= self.pace()) {
            self.list(now);
        }
    }

    /// Lists the whole folder. An unreadable folder says nothing about its entries: an unmounted
    /// disk must not take every spoke out of service.
    fn list(&mut self, now: Instant) {
        let readable = match folder::list(&self.settings.folder) {
            // The mount point of an unmounted disk is an empty folder on another device.
            Ok(listing) if listing.entries.is_empty() && self.is_elsewhere(listing.folder) => {
                if self.registry.is_readable() {
                    tracing::warn!(
                        "the spokes folder was replaced by an empty one on another device; serving spokes are kept"
                    );
                }
                false
            }
            Ok(listing) => {
                if self.listed.replace(listing.folder).is_some_and(|before| before != listing.folder) {
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
                true
            }
            Err(error) => {
                if self.registry.is_readable() {
                    tracing::warn!(%error, "the spokes folder can't be read; serving spokes are kept");
                }
                false
            }
        };
        self.registry.set_readable(readable);
        self.listed_at = Some(now);
        if readable {
            if self.settings.spokes.events && self.watcher.is_none() {
                // The folder may not have existed before.
                self.start_watching();
            }
            self.settle_orphans();
        } else {
            self.watcher = None;
        }
    }

    /// Whether the folder is on another device than before.
    fn is_elsewhere(&self, (device, _): (u64, u64)) -> bool {
        self.listed.is_some_and(|(before, _)| before != device)
    }

    /// Looks at an entry as if it had just appeared.
    pub(super) fn revisit(&mut self, entry: &str) {
        self.scan.forget(entry);
        self.look_at(Instant::now(), entry, true);
    }

    /// Applies a change of the folder.
    pub(super) fn changed(&mut self, change: Change) {
        match change {
            Change::Moved(entry) => self.moved(&entry),
            Change::Rested(entry, print) => self.rested(&entry, print),
            Change::Surplus(entry) => {
                let most = self.settings.spokes.most;
                let why = Reason::new("too_many", format!("the folder has more than {most} spokes already"))
                    .hint("remove some, or raise spokes.most; this one is looked at when there is room");
                self.refuse_entry(&entry, &entry, why);
            }
            Change::Gone(entry) => self.gone(&entry),
        }
    }

    fn moved(&mut self, entry: &str) {
        if let Some(&id) = self.by_entry.get(entry) {
            let life = self.lives.get_mut(&id).expect("entries lead to lives");
            if life.state.is_moving() {
                life.seen = Some(Instant::now());
                life.begins_anew();
                self.happen(id, Trigger::Changed);
                return;
            }
            // A serving life continues until the new content serves. Any other life ends.
            if life.state != State::Serving {
                self.forget(id);
            }
        }
        let name = match folder::spoke_name(entry) {
            Ok(name) if self.settings.is_post(name) => {
                let why = Reason::new("name_taken", "the post itself has this name").hint("rename the file");
                return self.refuse_entry(entry, name, why);
            }
            Ok(name) => name,
            Err(message) => return self.refuse_entry(entry, entry, Reason::new("bad_name", message)),
        };
        if let Some(holder) = self.holder(name, entry) {
            let why = Reason::new("name_taken", format!("{holder} has the name {name:?} already"))
                .hint("rename one of them, or remove the other: then this one is looked at");
            return self.refuse_entry(entry, name, why);
        }
        let mut life = Instance::new(name.to_owned(), Source::Entry(entry.to_owned()));
        life.seen = Some(Instant::now());
        self.begin(life);
    }

    /// The current holder of a name, if it isn't this entry.
    fn holder(&self, name: &str, entry: &str) -> Option<String> {
        let others = self.lives.values().filter(|life| life.name == name && life.entry() != Some(entry));
        // A spoke that doesn't work must not keep its name from one that does.
        let mut holders = others.filter(|life| !matches!(life.state, State::Quarantined(_) | State::Inert));
        holders.next().map(|life| match &life.source {
            Source::Entry(entry) => format!("the file {entry:?}"),
            Source::Given(_) => "a spoke that was loaded by request".to_owned(),
        })
    }

    /// Begins a life that is refused at once.
    fn refuse_entry(&mut self, entry: &str, name: &str, why: Reason) {
        for id in self.of_entry(entry) {
            // A serving life of this entry may have a name that the entry no longer has.
            if self.lives[&id].state == State::Serving {
                let why = Reason::new("replaced", "its file can't serve any more");
                self.happen(id, Trigger::Withdrawn(why));
            }
            self.withdraw(id);
            self.forget(id);
        }
        let id = self.begin(Instance::new(name.to_owned(), Source::Entry(entry.to_owned())));
        self.happen(id, Trigger::Refused(why));
    }

    fn rested(&mut self, entry: &str, print: Fingerprint) {
        let Some(&id) = self.by_entry.get(entry) else { return };
        let life = self.lives.get_mut(&id).expect("entries lead to lives");
        if life.state == State::Seen {
            life.print = Some(print);
            self.happen(id, Trigger::Rested);
        }
    }

    fn gone(&mut self, entry: &str) {
        let mut names = Vec::new();
        for id in self.of_entry(entry) {
            names.push(self.lives[&id].name.clone());
            self.happen(id, Trigger::Withdrawn(Reason::new("deleted", "its file was deleted")));
            self.withdraw(id);
            self.forget(id);
        }
        self.writes.get_mut().push(Write::NoFile(entry.to_owned()));
        self.by_entry.remove(entry);
        self.revisit_waiting(&names);
    }

    /// Looks again at files that wait for a name that is free now.
    pub(super) fn revisit_waiting(&mut self, names: &[String]) {
        let waiting: Vec<String> = self
            .lives
            .values()
            .filter(|life| names.contains(&life.name))
            .filter(|life| life.state.reason().is_some_and(|why| why.code == Code::NameTaken))
            .filter_map(|life| life.entry().map(str::to_owned))
            .collect();
        for entry in waiting {
            self.revisit(&entry);
        }
    }
}
