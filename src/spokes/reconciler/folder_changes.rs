//! Applies the folder's changes to instances.

use std::time::Instant;

use super::parts::Reconciler;
use super::state::content::Source;
use super::state::instance::{Instance, InstanceId};
use super::state::moment::Moment;
use crate::spokes::folder::{self, Change, Fingerprint};
use crate::spokes::life::{Reason, State, Trigger};
use crate::spokes::reason_code::Code;
use crate::spokes::store::Write;

impl Reconciler {
    /// Looks at what is due in the folder.
    pub(super) fn look(&mut self) {
        if let Some(is_readable) = self.folder.look(Instant::now()) {
            self.registry.set_readable(is_readable);
            if is_readable {
                self.settle_orphans();
            }
        }
    }

    /// Applies a change of the folder.
    pub(super) fn changed(&mut self, change: Change) {
        match change {
            Change::Moved(entry) => self.moved(&entry),
            Change::Rested(entry, print) => self.rested(&entry, print),
            Change::Surplus(entry) => {
                let most = self.folder.most();
                let message = format!("the folder has more than {most} spokes already");
                let why = Reason::new(Code::TooMany, message)
                    .hint("remove some, or raise spokes.most; this one is looked at when there is room");
                self.refuse_entry(&entry, &entry, why);
            }
            Change::Gone(entry) => self.gone(&entry),
        }
    }

    fn moved(&mut self, entry: &str) {
        let now = Moment::now();
        if let Some(id) = self.instances.current(entry) {
            let instance = self.instances.get_mut(id).expect("entries lead to instances");
            if instance.state().is_moving() {
                instance.see(now.instant);
                instance.restart();
                self.happen(id, Trigger::Changed);
                return;
            }
            // A serving instance continues until the new content serves. Any other ends.
            if !instance.is_serving() {
                self.forget(id);
            }
        }
        let name = match folder::spoke_name(entry) {
            Ok(name) => name,
            Err(message) => {
                return self.refuse_entry(entry, entry, Reason::new(Code::BadName, message));
            }
        };
        if let Some(why) = self.name_taken(name, entry) {
            return self.refuse_entry(entry, name, why);
        }
        self.begin(Instance::new(name, Source::Entry(entry.to_owned()), now).seen_at(now.instant));
    }

    /// Why an entry can't have a name, if others have it.
    fn name_taken(&self, name: &str, entry: &str) -> Option<Reason> {
        if self.settings.is_post(name) {
            let why = Reason::new(Code::NameTaken, "the post itself has this name");
            return Some(why.hint("rename the file"));
        }
        let holder = match self.instances.holder(name, entry)?.source() {
            Source::Entry(entry) => format!("the file {entry:?}"),
            Source::Given(_) | Source::Copy(_) => "a spoke that was loaded by request".to_owned(),
        };
        let why = Reason::new(Code::NameTaken, format!("{holder} has the name {name:?} already"));
        Some(why.hint("rename one of them, or remove the other: then this one is looked at"))
    }

    /// Begins an instance that is refused at once.
    fn refuse_entry(&mut self, entry: &str, name: &str, why: Reason) {
        for id in self.instances.of_entry(entry) {
            // A serving instance of this entry may have a name that the entry no longer has.
            if self.instances[id].is_serving() {
                let why = Reason::new(Code::Replaced, "its file can't serve any more");
                self.happen(id, Trigger::Withdrawn(why));
            }
            self.withdraw(id);
            self.forget(id);
        }
        let id = self.begin(Instance::new(name, Source::Entry(entry.to_owned()), Moment::now()));
        self.happen(id, Trigger::Refused(why));
    }

    fn rested(&mut self, entry: &str, print: Fingerprint) {
        let Some(id) = self.instances.current(entry) else { return };
        let instance = self.instances.get_mut(id).expect("entries lead to instances");
        if *instance.state() == State::Seen {
            instance.rest(print);
            self.happen(id, Trigger::Rested);
        }
    }

    fn gone(&mut self, entry: &str) {
        let mut names = Vec::new();
        for id in self.instances.of_entry(entry) {
            names.push(self.instances[id].name().to_owned());
            self.deleted(id);
        }
        self.outbox.write(Write::NoFile(entry.to_owned()));
        self.revisit_waiting(&names);
    }

    /// Looks again at files that wait for a name that is free now.
    pub(super) fn revisit_waiting(&mut self, names: &[String]) {
        let is_waiting = |instance: &Instance| {
            instance.is_refused_for(&Code::NameTaken) && names.iter().any(|name| name == instance.name())
        };
        let now = Instant::now();
        for id in self.instances.ids(is_waiting) {
            if let Some(entry) = self.instances[id].entry() {
                self.folder.revisit(now, entry);
            }
        }
    }

    /// Assigns each instance whose entry isn't known to the file of its name. Without such a file
    /// the instance ends.
    fn settle_orphans(&mut self) {
        for id in self.instances.orphans() {
            match self.instances.entry_source(self.instances[id].name()).cloned() {
                Some(source) => {
                    let instance = self.instances.get_mut(id).expect("it was found a moment ago");
                    instance.set_source(source);
                }
                None => self.deleted(id),
            }
        }
    }

    /// Ends an instance whose file was deleted.
    fn deleted(&mut self, id: InstanceId) {
        self.happen(id, Trigger::Withdrawn(Reason::new(Code::Deleted, "its file was deleted")));
        self.withdraw(id);
        self.forget(id);
    }
}
