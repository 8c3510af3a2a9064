//! Turns scans of the folder into changes. Pure: the time is an argument.
//!
//! An entry is *moving* from when it appears or changes until it has looked the same for the settle
//! time; then it *rests*. An entry that disappears is *missing* for the same time before it is
//! gone, so that replacing a file by deleting it first does not take the old spoke out of service.
//! Looking at an entry is cheap but not free, so between two listings only moving and missing
//! entries are checked, the longest waiting first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Fingerprint;

/// A change of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It appeared, or became a different file.
    Moved(String),
    /// It has been unchanged for the settle time.
    Rested(String, Fingerprint),
    /// It exists, but the folder has more entries than are followed.
    Surplus(String),
    /// It is gone.
    Gone(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    print: Fingerprint,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Moving(Instant),
    Resting,
    Missing { since: Instant, rested: bool },
}

impl Phase {
    /// Start of the current phase, if time will end that phase.
    fn since(self) -> Option<Instant> {
        match self {
            Self::Moving(since) | Self::Missing { since, .. } => Some(since),
            Self::Resting => None,
        }
    }
}

/// Known state of the folder.
#[derive(Debug)]
pub struct Scan {
    settle: Duration,
    most: usize,
    entries: BTreeMap<String, Entry>,
    surplus: BTreeSet<String>,
    /// The moving and missing entries, by the start of that phase.
    turning: BTreeSet<(Instant, String)>,
}

impl Scan {
    /// Starts without any entry. Follows at most `most` entries.
    pub fn new(settle: Duration, most: usize) -> Self {
        Self { settle, most, entries: BTreeMap::new(), surplus: BTreeSet::new(), turning: BTreeSet::new() }
    }

    /// Restores an entry that came to rest before this process started. It is no change as long as
    /// its fingerprint stays the same.
    pub fn remember(&mut self, name: String, print: Fingerprint) {
        self.put(name, print, Phase::Resting);
    }

    /// Forgets an entry, so that it moves and rests again if it still exists.
    pub fn forget(&mut self, name: &str) {
        self.remove(name);
    }

    /// Takes in a listing of the whole folder.
    pub fn listed(&mut self, now: Instant, listing: BTreeMap<String, Fingerprint>) -> Vec<Change> {
        let known = self.entries.keys().chain(&self.surplus);
        let missing: Vec<String> = known.filter(|name| !listing.contains_key(*name)).cloned().collect();
        let mut changes = Vec::new();
        for name in missing {
            changes.extend(self.looked(now, &name, None, false));
        }
        for (name, print) in listing {
            changes.extend(self.looked(now, &name, Some(print), false));
        }
        changes
    }

    /// Takes in the state of one entry. `finished` means that a rename put it there complete, so it
    /// need not settle.
    pub fn looked(
        &mut self,
        now: Instant,
        name: &str,
        print: Option<Fingerprint>,
        finished: bool,
    ) -> Option<Change> {
        let Some(print) = print else { return self.missed(now, name) };
        let entry = self.entries.get(name).cloned();
        match entry {
            Some(entry) if entry.print == print => self.same(now, name, entry, finished),
            None if self.entries.len() >= self.most => {
                self.surplus.insert(name.to_owned()).then(|| Change::Surplus(name.to_owned()))
            }
            _ => {
                self.surplus.remove(name);
                // A finished entry is checked once more in the next turn, and rests then.
                let since = if finished { now.checked_sub(self.settle).unwrap_or(now) } else { now };
                self.put(name.to_owned(), print, Phase::Moving(since));
                Some(Change::Moved(name.to_owned()))
            }
        }
    }

    fn same(&mut self, now: Instant, name: &str, entry: Entry, finished: bool) -> Option<Change> {
        let Entry { print, phase } = entry;
        match phase {
            Phase::Moving(since) if finished || now.duration_since(since) >= self.settle => {
                self.put(name.to_owned(), print.clone(), Phase::Resting);
                Some(Change::Rested(name.to_owned(), print))
            }
            Phase::Moving(_) | Phase::Resting => None,
            Phase::Missing { rested, .. } => {
                let phase = if rested { Phase::Resting } else { Phase::Moving(now) };
                self.put(name.to_owned(), print, phase);
                None
            }
        }
    }

    fn missed(&mut self, now: Instant, name: &str) -> Option<Change> {
        if self.surplus.remove(name) {
            return Some(Change::Gone(name.to_owned()));
        }
        let Entry { print, phase } = self.entries.get(name)?.clone();
        let rested = match phase {
            Phase::Missing { since, .. } if now.duration_since(since) >= self.settle => {
                self.remove(name);
                return Some(Change::Gone(name.to_owned()));
            }
            Phase::Missing { .. } => return None,
            Phase::Resting => true,
            Phase::Moving(_) => false,
        };
        self.put(name.to_owned(), print, Phase::Missing { since: now, rested });
        None
    }

    /// Moving and missing entries that are due for a check, at most `most`.
    pub fn due(&self, now: Instant, most: usize) -> Vec<String> {
        let due = self.turning.iter().take_while(|(since, _)| now.duration_since(*since) >= self.settle);
        due.take(most).map(|(_, name)| name.clone()).collect()
    }

    /// When the next entry is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.turning.first().map(|(since, _)| *since + self.settle)
    }

    fn put(&mut self, name: String, print: Fingerprint, phase: Phase) {
        self.remove(&name);
        self.turning.extend(phase.since().map(|since| (since, name.clone())));
        self.entries.insert(name, Entry { print, phase });
    }

    fn remove(&mut self, name: &str) {
        let Some(entry) = self.entries.remove(name) else { return };
        if let Some(since) = entry.phase.since() {
            self.turning.remove(&(since, name.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_millis(500);

    fn print(size: u64) -> Fingerprint {
        Fingerprint { size, ..Fingerprint::default() }
    }

    fn listing(entries: &[(&str, u64)]) -> BTreeMap<String, Fingerprint> {
        entries.iter().map(|&(name, size)| (name.to_owned(), print(size))).collect()
    }

    /// One step of a test.
    enum Step {
        /// A listing of the whole folder.
        List(&'static [(&'static str, u64)]),
        /// A look at one entry, possibly put there by a rename.
        Look(&'static str, Option<u64>, bool),
        /// A look at everything that is due, unchanged or with these sizes.
        Due(&'static [(&'static str, u64)]),
    }
    use Step::{Due, List, Look};

    /// Runs steps at times in milliseconds and returns the changes in short form: `+` moved, `=`
    /// rested, `!` surplus, `-` gone.
    fn play(most: usize, steps: &[(u64, Step)]) -> Vec<String> {
        let start = Instant::now() + Duration::from_secs(60);
        let mut scan = Scan::new(SETTLE, most);
        let mut all = Vec::new();
        for (ms, step) in steps {
            let now = start + Duration::from_millis(*ms);
            let changes = match step {
                List(entries) => scan.listed(now, listing(entries)),
                Look(name, size, finished) => {
                    scan.looked(now, name, size.map(print), *finished).into_iter().collect()
                }
                Due(sizes) => {
                    let due = scan.due(now, usize::MAX);
                    let size =
                        |name: &String| sizes.iter().find(|(of, _)| of == name).map(|(_, size)| print(*size));
                    due.iter()
                        .filter_map(|name| {
                            let print = size(name).unwrap_or_else(|| scan.entries[name].print.clone());
                            scan.looked(now, name, Some(print), false)
                        })
                        .collect()
                }
            };
            let short = changes.iter().map(|change| match change {
                Change::Moved(name) => format!("+{name}"),
                Change::Rested(name, print) => format!("={name}{}", print.size),
                Change::Surplus(name) => format!("!{name}"),
                Change::Gone(name) => format!("-{name}"),
            });
            all.push(format!("{ms}: {}", short.collect::<Vec<_>>().join(" ")));
        }
        all
    }

    #[test]
    fn a_file_rests_when_it_has_looked_the_same_for_the_settle_time() {
        let changes = play(
            9,
            &[
                (0, List(&[("a", 1)])),
                (499, Due(&[])),
                (500, Due(&[("a", 2)])),
                (999, Due(&[])),
                (1_000, Due(&[])),
                (1_001, Due(&[])),
                (9_000, List(&[("a", 2)])),
                (9_001, List(&[("a", 3)])),
                (9_501, List(&[("a", 3)])),
            ],
        );
        assert_eq!(
            changes,
            ["0: +a", "499: ", "500: +a", "999: ", "1000: =a2", "1001: ", "9000: ", "9001: +a", "9501: =a3"]
        );
    }

    #[test]
    fn what_is_renamed_into_the_folder_rests_at_once() {
        let changes = play(
            9,
            &[
                (0, Look("new", Some(1), true)),
                (0, Due(&[])),
                (10, Look("new", Some(2), true)),
                (10, Due(&[])),
                (20, Look("slow", Some(1), false)),
                (30, Look("slow", Some(1), true)),
            ],
        );
        assert_eq!(changes, ["0: +new", "0: =new1", "10: +new", "10: =new2", "20: +slow", "30: =slow1"]);
    }

    #[test]
    fn what_stays_away_is_gone_and_what_comes_back_in_time_is_not() {
        let changes = play(
            9,
            &[
                (0, List(&[("a", 1), ("b", 1), ("c", 1)])),
                (600, Due(&[])),
                (700, Look("a", None, false)),
                (701, List(&[])),
                (702, Look("never there", None, false)),
                // "a" is back as the same file; "b" is replaced by another file.
                (800, Look("a", Some(1), false)),
                (900, Look("b", Some(2), true)),
                (901, Due(&[])),
                (1_300, Look("c", None, false)),
                (1_301, Look("c", None, false)),
                (1_400, List(&[("a", 1), ("b", 2)])),
                (1_500, List(&[("a", 1), ("b", 2), ("c", 1)])),
            ],
        );
        let expected = [
            "0: +a +b +c",
            "600: =a1 =b1 =c1",
            "700: ",
            "701: ",
            "702: ",
            "800: ",
            "900: +b",
            "901: =b2",
            "1300: -c",
            "1301: ",
            "1400: ",
            "1500: +c",
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn surplus_entries_wait_until_others_go() {
        let changes = play(
            1,
            &[
                (0, List(&[("a", 1), ("b", 1), ("c", 1)])),
                (1, List(&[("a", 1), ("b", 1), ("c", 1)])),
                (2, List(&[("b", 1), ("c", 1)])),
                (600, List(&[("b", 1), ("c", 1)])),
                (700, List(&[("b", 1)])),
            ],
        );
        assert_eq!(changes, ["0: +a !b !c", "1: ", "2: ", "600: -a +b", "700: -c"]);
    }

    #[test]
    fn what_is_remembered_is_no_news_until_it_is_forgotten() {
        let now = Instant::now();
        let mut scan = Scan::new(SETTLE, 9);
        scan.remember("a".to_owned(), print(1));
        assert_eq!(scan.listed(now, listing(&[("a", 1)])), []);
        assert_eq!(scan.next_due(), None);
        scan.forget("a");
        assert_eq!(scan.listed(now, listing(&[("a", 1)])), [Change::Moved("a".to_owned())]);
        assert_eq!(scan.next_due(), Some(now + SETTLE));
    }

    #[test]
    fn ten_thousand_files_are_taken_a_few_at_a_time_and_none_is_forgotten() {
        let start = Instant::now();
        let mut scan = Scan::new(SETTLE, 20_000);
        let all: BTreeMap<String, Fingerprint> = (0..10_000).map(|n| (format!("{n:05}"), print(n))).collect();
        assert_eq!(scan.listed(start, all.clone()).len(), 10_000);
        let mut rested = BTreeSet::new();
        // One entry never rests and comes first in the alphabet. It must not starve the others.
        for turn in 0..100 {
            let now = start + SETTLE + Duration::from_millis(turn);
            let due = scan.due(now, 101);
            assert!(due.len() <= 101);
            for name in due {
                let size = if name == "00000" { turn } else { all[&name].size };
                if let Some(Change::Rested(name, _)) =
                    scan.looked(now, &name, Some(print(size + u64::from(name == "00000"))), false)
                {
                    rested.insert(name);
                }
            }
        }
        assert_eq!(rested.len(), 9_999);
    }
}
