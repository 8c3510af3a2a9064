//! Startup: restores what served and all verdicts, and bans generations that crashed the process.

use std::collections::BTreeMap;

use super::aliases::{FIRST_NAME, Named};
use super::event_loop::Reconciler;
use super::instances::{Instance, Source};
use super::marks::{marks, unmark};
use crate::adapter::Generation;
use crate::database::DatabaseError;
use crate::spokes::leases::Leases;
use crate::spokes::life::{Effect, Reason, State, Trigger};
use crate::spokes::quarantine;
use crate::spokes::store::{File, StoredSpoke};

/// Consecutive crashes on a generation that this program has loaded before, until it is banned. The
/// first may be a power cut.
const STRIKES: u32 = 2;
/// Key of the note that holds the post and program version of the verdicts.
const HERE: &str = "examined_here";

impl Reconciler {
    pub(super) fn restore(&mut self) -> Result<(), DatabaseError> {
        let unfinished = self.store.unfinished()?;
        let StoredSpoke { names, generations, files, banned, rolled_back } = self.store.stored(&self.here)?;
        (self.known, self.banned, self.rolled_back) = (generations, banned, rolled_back);
        for load in unfinished {
            let proven = self.known.get(&load.generation).is_some_and(|known| known.proven);
            tracing::error!(
                name = load.name,
                generation = load.generation.short(),
                strikes = load.strikes,
                proven,
                "the daemon died while it loaded this spoke"
            );
            let why = (!proven || load.strikes >= STRIKES).then(|| {
                Reason::new("crashed", "the daemon died while it loaded this content")
                    .hint("`bespoke spoke enable` tries it again; the daemon may crash again")
            });
            self.store.judge_unfinished(load.generation, why.as_ref())?;
            self.banned.extend(why.map(|why| (load.generation, why)));
        }
        for generation in marks(&self.staged()).unwrap_or_else(|error| {
            tracing::warn!(%error, "unfinished inspections of the last run can't be listed");
            Vec::new()
        }) {
            // A generation that this version has loaded before is not at fault.
            if self.known.get(&generation).is_none_or(|known| !known.proven) {
                tracing::error!(
                    generation = generation.short(),
                    "the daemon died while it inspected this spoke"
                );
                let why = Reason::new("crashed", "the daemon died while it inspected this content")
                    .hint("`bespoke spoke enable` inspects it again; the daemon may crash again");
                self.store.ban(generation, &why)?;
                self.banned.insert(generation, why);
            }
            if let Err(error) = unmark(&self.staged(), generation) {
                tracing::warn!(%error, "the mark of an inspection can't be removed");
            }
        }
        let here = format!("{} {}", self.here.post, self.here.version);
        let same_place = self.store.note(HERE)?.as_deref() == Some(&*here);
        let entries: BTreeMap<String, String> =
            files.iter().map(|(entry, file)| (file.name.clone(), entry.clone())).collect();
        if let Some(first) = self.store.note(FIRST_NAME)? {
            self.first_name = first.parse().unwrap_or_default();
        }
        for (name, stored) in names {
            let named = Named {
                id: stored.id,
                current: None,
                life: None,
                disabled: stored.disabled,
                given: stored.given,
                left: stored.left,
                left_for: stored.left_for,
                history: stored.history,
            };
            self.names.insert(name.clone(), named);
            if let Some(generation) = stored.current {
                let source = match (entries.get(&name), stored.given) {
                    (Some(entry), false) => Source::Entry(entry.clone()),
                    _ => Source::Given(self.staged().join(generation.to_string())),
                };
                let file = entries.get(&name).and_then(|entry| files.get(entry));
                self.restore_name(&name, generation, source, file, stored.given);
            }
        }
        // Publish the reasons of names that no longer serve, even if nothing serves.
        self.names_changed |= !self.names.is_empty();
        for (entry, file) in files {
            self.restore_file(&entry, file, same_place);
        }
        if let Err(error) = quarantine::sweep_half_made(&self.state.path().join("spokes/quarantine")) {
            tracing::warn!(%error, "unfinished files of a crash can't be removed");
        }
        self.store.set_note(HERE, &here)?;
        self.write_down();
        Ok(())
    }

    /// Makes a name's generation serve again, unless it must be examined first or is banned.
    fn restore_name(
        &mut self,
        name: &str,
        generation: Generation,
        source: Source,
        file: Option<&File>,
        given: bool,
    ) {
        let known = self.known.get(&generation).cloned();
        let served = self.served_copy(generation);
        let mut life = Instance::new(name.to_owned(), source.clone());
        life.generation = Some(generation);
        life.pinned = self.copies(generation).into_iter().next();
        life.served.clone_from(&served);
        life.facts = known.as_ref().map(|known| known.facts.clone());
        let own = file.filter(|file| file.generation == Some(generation) && file.state == State::Serving);
        let at_home = known.as_ref().is_some_and(|known| known.verdict.is_some());
        let banned = self.banned.get(&generation).cloned();
        match (known, served) {
            (Some(known), Some(path)) if at_home || banned.is_some() => {
                life.state = State::Serving;
                life.print = own.map(|file| file.print.clone());
                let slot = Leases::new(
                    generation,
                    name.to_owned(),
                    known.facts,
                    path,
                    std::sync::Arc::clone(&self.bell),
                );
                let id = self.resume(life);
                let named = self.names.get_mut(name).expect("it was put there by the caller");
                (named.current, named.life) = (Some(generation), Some(id));
                self.slots.insert(generation, slot);
                self.names_changed = true;
                match banned {
                    Some(why) => self.happen(id, Trigger::Refused(why)),
                    None => self.preload.push_back(generation),
                }
                self.show(id);
                if matches!(source, Source::Given(_)) && !given {
                    self.orphans.push(id);
                }
            }
            // Another version of this program or another post: examine its copy again.
            (Some(_), _) if life.pinned.is_some() => {
                life.state = State::Settled;
                let id = self.resume(life);
                self.effects.push_back((id, Effect::Inspect));
                if matches!(source, Source::Given(_)) && !given {
                    self.orphans.push(id);
                }
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
        let lives_on =
            self.of_entry(entry).into_iter().find(|id| self.lives[id].generation == file.generation);
        if let Some(id) = lives_on {
            // It serves, or did until now. A life that is examined again needs no restored file:
            // the entry is looked at from scratch.
            if !self.lives[&id].state.is_moving() && self.lives[&id].print.is_some() {
                self.by_entry.insert(entry.to_owned(), id);
                self.scan.remember(entry.to_owned(), file.print);
                self.keep_end(id);
            }
            return;
        }
        if !same_place || file.state == State::Serving || file.state.is_moving() {
            return;
        }
        self.scan.remember(entry.to_owned(), file.print.clone());
        let mut life = Instance::new(file.name, Source::Entry(entry.to_owned()));
        life.print = Some(file.print);
        life.generation = file.generation;
        if let Some(generation) = file.generation {
            life.facts = self.known.get(&generation).map(|known| known.facts.clone());
            life.pinned = self.copies(generation).into_iter().next();
            life.served = self.served_copy(generation);
        }
        life.state = file.state;
        let id = self.resume(life);
        self.by_entry.insert(entry.to_owned(), id);
    }

    /// Assigns each serving life without a known file to the file of its name. Without such a file
    /// the life ends.
    pub(super) fn settle_orphans(&mut self) {
        for id in std::mem::take(&mut self.orphans) {
            let Some(life) = self.lives.get(&id) else { continue };
            let owner = self.lives.values().find(|other| other.name == life.name && other.entry().is_some());
            if let Some(source) = owner.map(|owner| owner.source.clone()) {
                self.lives.get_mut(&id).expect("looked up above").source = source;
            } else {
                self.happen(id, Trigger::Withdrawn(Reason::new("deleted", "its file was deleted")));
                self.withdraw(id);
                self.forget(id);
            }
        }
    }
}
