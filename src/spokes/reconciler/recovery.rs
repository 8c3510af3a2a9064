//! Startup: restores what served and all verdicts, and bans generations that crashed the process.

use std::collections::BTreeMap;

use super::marks::{marks, unmark};
use super::parts::Reconciler;
use super::serving::FIRST_NAME;
use super::state::content::{Content, Source};
use super::state::examinations::Examinations;
use super::state::instance::Instance;
use super::state::moment::Moment;
use crate::adapter::Generation;
use crate::database::DatabaseError;
use crate::spokes::life::{Effect, Reason, State, Trigger};
use crate::spokes::reason_code::Code;
use crate::spokes::store::{File, StoredSpoke};

/// Consecutive crashes on a generation that this program has loaded before, until it is banned. The
/// first may be a power cut.
const STRIKES: u32 = 2;
/// Key of the note that holds the post and program version of the verdicts.
const HERE: &str = "examined_here";

impl Reconciler {
    pub(super) fn restore(&mut self) -> Result<(), DatabaseError> {
        let StoredSpoke { names, generations, files, banned, rolled_back } = self.store.stored(&self.here)?;
        self.examinations = Examinations::new(generations, banned);
        self.ban_unfinished_loads()?;
        self.ban_unfinished_inspections()?;
        let here = format!("{} {}", self.here.post, self.here.version);
        let same_place = self.store.note(HERE)?.as_deref() == Some(&*here);
        let first_id = self.store.note(FIRST_NAME)?.and_then(|first| first.parse().ok());
        let serving: Vec<(String, Generation, bool)> = names
            .iter()
            .filter_map(|(name, stored)| Some((name.clone(), stored.current?, stored.given)))
            .collect();
        if !names.is_empty() {
            // Publish the reasons of names that no longer serve, even if nothing serves.
            self.outbox.change_serving();
        }
        self.aliases.restore(first_id.unwrap_or_default(), names, rolled_back);
        let entries: BTreeMap<&str, &str> =
            files.iter().map(|(entry, file)| (file.name.as_str(), entry.as_str())).collect();
        for (name, generation, given) in serving {
            let entry = entries.get(name.as_str()).copied();
            let source = match (entry, given) {
                (Some(entry), false) => Source::Entry(entry.to_owned()),
                (None, false) => Source::Copy(self.copies.path(generation)),
                (_, true) => Source::Given(self.copies.path(generation)),
            };
            self.restore_name(&name, generation, source, entry.and_then(|entry| files.get(entry)));
        }
        for (entry, file) in files {
            self.restore_file(&entry, file, same_place);
        }
        if let Err(error) = self.quarantine.sweep_half_made() {
            tracing::warn!(%error, "unfinished files of a crash can't be removed");
        }
        self.store.set_note(HERE, &here)?;
        self.write_down();
        Ok(())
    }

    fn ban_unfinished_loads(&mut self) -> Result<(), DatabaseError> {
        for load in self.store.unfinished()? {
            let proven = self.examinations.is_proven(load.generation);
            tracing::error!(
                name = load.name,
                generation = load.generation.short(),
                strikes = load.strikes,
                proven,
                "the daemon died while it loaded this spoke"
            );
            let why = (!proven || load.strikes >= STRIKES).then(|| {
                Reason::new(Code::Crashed, "the daemon died while it loaded this content")
                    .hint("`bespoke spoke enable` tries it again; the daemon may crash again")
            });
            self.store.judge_unfinished(load.generation, why.as_ref())?;
            if let Some(why) = why {
                self.examinations.ban(load.generation, why);
            }
        }
        Ok(())
    }

    fn ban_unfinished_inspections(&mut self) -> Result<(), DatabaseError> {
        let marked = marks(self.copies.folder()).unwrap_or_else(|error| {
            tracing::warn!(%error, "unfinished inspections of the last run can't be listed");
            Vec::new()
        });
        for generation in marked {
            // A generation that this version has loaded before is not at fault.
            if !self.examinations.is_proven(generation) {
                tracing::error!(
                    generation = generation.short(),
                    "the daemon died while it inspected this spoke"
                );
                let why = Reason::new(Code::Crashed, "the daemon died while it inspected this content")
                    .hint("`bespoke spoke enable` inspects it again; the daemon may crash again");
                self.store.ban(generation, &why)?;
                self.examinations.ban(generation, why);
            }
            if let Err(error) = unmark(self.copies.folder(), generation) {
                tracing::warn!(%error, "the mark of an inspection can't be removed");
            }
        }
        Ok(())
    }

    /// What is known of a generation from an earlier process.
    fn known_content(&self, generation: Generation) -> Content {
        Content {
            generation,
            pinned: self.copies.pinned(generation),
            served: self.copies.served(generation),
            facts: self.examinations.facts(generation).cloned(),
        }
    }

    /// Makes a name's generation serve again, unless it must be examined first or is banned.
    fn restore_name(&mut self, name: &str, generation: Generation, source: Source, file: Option<&File>) {
        let content = self.known_content(generation);
        let is_known = content.facts.is_some();
        let is_verified = self.examinations.verdict(generation).is_some();
        let ban = self.examinations.ban_of(generation).cloned();
        let instance = Instance::new(name, source, Moment::now()).with_content(content);
        match instance.inspected() {
            Some(inspected) if is_verified || ban.is_some() => {
                let own =
                    file.filter(|file| file.generation == Some(generation) && file.state == State::Serving);
                let print = own.map(|file| file.print.clone());
                let id = self.resume(instance.with_print(print).in_state(State::Serving));
                self.residency.slot_for(name, inspected);
                self.aliases.resume(name, generation, id);
                self.outbox.change_serving();
                match ban {
                    Some(why) => self.happen(id, Trigger::Refused(why)),
                    None => self.residency.preload(generation),
                }
            }
            // Another version of this program or another post: examine its copy again.
            _ if is_known && instance.content().is_some_and(|content| content.pinned.is_some()) => {
                let id = self.resume(instance.in_state(State::Settled));
                self.outbox.effect(id, Effect::Inspect);
            }
            _ => {
                tracing::warn!(
                    name,
                    generation = generation.short(),
                    "the copy of what served no longer exists"
                );
                self.fall_back(name);
            }
        }
    }

    /// Restores the stored outcome of an entry, if it still holds.
    fn restore_file(&mut self, entry: &str, file: File, same_place: bool) {
        let mut of_entry = self.instances.of_entry(entry).into_iter();
        let same = of_entry.find(|id| self.instances[*id].generation() == file.generation);
        if let Some(id) = same {
            let instance = &self.instances[id];
            // It serves, or did until now. An instance that is examined again needs no restored
            // file: the entry is looked at from scratch.
            if !instance.state().is_moving() && instance.print().is_some() {
                self.instances.make_current(id);
                self.folder.remember(entry, file.print);
                self.keep_outcome(id);
            }
            return;
        }
        if !same_place || file.state == State::Serving || file.state.is_moving() {
            return;
        }
        self.folder.remember(entry, file.print.clone());
        let source = Source::Entry(entry.to_owned());
        let mut instance =
            Instance::new(file.name, source, Moment::now()).with_print(Some(file.print)).in_state(file.state);
        if let Some(generation) = file.generation {
            instance = instance.with_content(self.known_content(generation));
        }
        let id = self.resume(instance);
        self.instances.make_current(id);
    }
}
