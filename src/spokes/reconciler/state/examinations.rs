//! What is known about generations: facts and verdicts, which of them the engine has loaded, and
//! which must not be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::outbox::Outbox;
use crate::adapter::Generation;
use crate::spokes::life::Reason;
use crate::spokes::store::{Examined, Facts, Known, Verdict, Write};

/// How long the inspection of a copy that failed to load stays valid.
const INSPECTION_HOLDS: Duration = Duration::from_secs(60);

/// What is known about generations.
#[derive(Debug, Default)]
pub struct Examinations {
    known: BTreeMap<Generation, Known>,
    /// Generations that must not be loaded under any name, because they crash the process.
    banned: BTreeMap<Generation, Reason>,
    /// When the copies of generations that failed to load were last inspected.
    inspected: BTreeMap<Generation, Instant>,
}

impl Examinations {
    /// Starts with what the last process knew.
    pub fn new(known: BTreeMap<Generation, Known>, banned: BTreeMap<Generation, Reason>) -> Self {
        Self { known, banned, inspected: BTreeMap::new() }
    }

    pub fn facts(&self, generation: Generation) -> Option<&Facts> {
        self.known.get(&generation).map(|known| &known.facts)
    }

    /// The verdict, if it was examined with this post and program.
    pub fn verdict(&self, generation: Generation) -> Option<Verdict> {
        self.known.get(&generation)?.verdict
    }

    /// Whether this version of the program has loaded it.
    pub fn is_proven(&self, generation: Generation) -> bool {
        self.known.get(&generation).is_some_and(|known| known.proven)
    }

    /// Whether a failed load is hardly its fault: this process, or its probe, has loaded it before.
    pub fn is_trusted(&self, generation: Generation, probes: bool) -> bool {
        self.is_proven(generation) || (probes && self.verdict(generation) == Some(Verdict::Differs))
    }

    /// Stores the verdict on a generation, for this post and this program.
    pub fn record(&mut self, examined: Examined, outbox: &mut Outbox) {
        let Examined { generation, facts, verdict } = examined.clone();
        outbox.write(Write::Examined(examined));
        self.known.insert(generation, Known { facts, verdict: Some(verdict), proven: false });
    }

    /// The engine has loaded it.
    pub fn prove(&mut self, generation: Generation) {
        self.inspected.remove(&generation);
        if let Some(known) = self.known.get_mut(&generation) {
            known.proven = true;
        }
    }

    /// Whether its copy has to be inspected after a failed load. If so, that is done now.
    pub fn begin_inspection(&mut self, generation: Generation, now: Instant) -> bool {
        let holds = |inspected: &Instant| now.saturating_duration_since(*inspected) < INSPECTION_HOLDS;
        if self.inspected.get(&generation).is_some_and(holds) {
            return false;
        }
        self.inspected.insert(generation, now);
        true
    }

    /// Bans a generation in this process.
    pub fn ban(&mut self, generation: Generation, why: Reason) {
        self.banned.insert(generation, why);
    }

    /// Why it must not be loaded, if so.
    pub fn ban_of(&self, generation: Generation) -> Option<&Reason> {
        self.banned.get(&generation)
    }

    /// All that must not be loaded.
    pub fn banned(&self) -> &BTreeMap<Generation, Reason> {
        &self.banned
    }

    /// Lifts a ban. Returns whether there was one.
    pub fn lift_ban(&mut self, generation: Generation) -> bool {
        self.banned.remove(&generation).is_some()
    }

    /// Forgets the examinations of all others: no name and no file has them any more.
    pub fn retain(&mut self, needed: &BTreeSet<Generation>, outbox: &mut Outbox) {
        self.known.retain(|generation, _| {
            let is_needed = needed.contains(generation);
            if !is_needed {
                outbox.write(Write::Unexamined(*generation));
            }
            is_needed
        });
        self.inspected.retain(|generation, _| needed.contains(generation));
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance::tests::{facts, generation};
    use super::super::outbox::tests::writes;
    use super::*;
    use crate::spokes::reason_code::Code;

    fn examined(text: &str, verdict: Verdict) -> Examined {
        Examined { generation: generation(text), facts: facts(7), verdict }
    }

    #[test]
    fn a_generation_is_trusted_once_the_engine_or_its_probe_has_loaded_it() {
        let (mut examinations, mut outbox) = (Examinations::default(), Outbox::default());
        let [one, two] = ["one", "two"].map(generation);
        examinations.record(examined("one", Verdict::Differs), &mut outbox);
        examinations.record(examined("two", Verdict::Same), &mut outbox);
        assert!(examinations.is_trusted(one, true) && !examinations.is_trusted(one, false));
        assert!(!examinations.is_trusted(two, true), "a probe that changes nothing proves nothing");
        examinations.prove(two);
        assert!(examinations.is_trusted(two, false) && examinations.is_proven(two));
        assert!(!examinations.is_trusted(generation("unknown"), true));
        // A new verdict is about another program or post, with which it wasn't loaded yet.
        examinations.record(examined("two", Verdict::Same), &mut outbox);
        assert!(!examinations.is_proven(two));
    }

    #[test]
    fn a_copy_is_inspected_at_most_once_a_minute_until_it_is_loaded() {
        let (mut examinations, now) = (Examinations::default(), Instant::now());
        let one = generation("one");
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(examinations.begin_inspection(one, now));
        assert!(!examinations.begin_inspection(one, after(59)));
        assert!(examinations.begin_inspection(generation("two"), after(59)));
        assert!(examinations.begin_inspection(one, after(60)));
        examinations.prove(one);
        assert!(examinations.begin_inspection(one, after(61)));
    }

    #[test]
    fn examinations_without_a_name_or_a_file_are_forgotten_and_bans_stay() {
        let (mut examinations, mut outbox) = (Examinations::default(), Outbox::default());
        let [one, two] = ["one", "two"].map(generation);
        examinations.record(examined("one", Verdict::Differs), &mut outbox);
        examinations.record(examined("two", Verdict::Same), &mut outbox);
        examinations.ban(two, Reason::new(Code::Crashed, "the daemon died"));
        examinations.retain(&[one].into(), &mut outbox);
        assert_eq!(examinations.verdict(one), Some(Verdict::Differs));
        assert_eq!((examinations.verdict(two), examinations.facts(two)), (None, None));
        assert_eq!(writes(&outbox).last(), Some(&Write::Unexamined(two)));
        assert_eq!(examinations.banned().len(), 1);
        assert!(examinations.ban_of(two).is_some() && examinations.lift_ban(two));
        assert!(examinations.ban_of(two).is_none() && !examinations.lift_ban(two));
    }
}
