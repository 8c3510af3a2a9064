//! Searches a short closing: bytes that complete a constrained answer. The search runs on the bytes
//! of the grammar itself, so that it also respects lengths, patterns and bounds.
//!
//! Between values, the shortest continuation is tried first (a closing bracket before a comma, an
//! empty string before a number), and alternatives only if it leads to a dead end. Inside a string
//! or number, a breadth-first search over the states of the grammar's lexer finds the fewest bytes
//! that end it. If the string is a name, other names are alternatives too. If an item of a list has
//! to differ from others, a repeat is a dead end as well, and other strings and numbers are tried.

use std::collections::{HashMap, HashSet, VecDeque};

use llguidance::TokenParser;
use llguidance::derivre::{NextByte, StateID};
use llguidance::earley::ParserRecognizer;
use toktrie::Recognizer;

use super::json_cursor::{Place, Scanner};
use super::repeats::Watch;

/// Maximum bytes tried in one search. Bounds the time for a schema whose shortest instance is hard
/// to find (about 0.1 s).
const MAX_STEPS: usize = 400_000;
/// Of these, the maximum for the breadth-first search of one string or number.
const MAX_BREADTH: usize = 60_000;
/// Maximum number of names that are tried at one position, counting only those that reach different
/// states.
const MAX_NAMES: usize = 48;
/// Longest closing that is looked for, in bytes.
const MAX_BYTES: usize = 32_768;
/// Maximum bytes tried in one search if items have to differ. Smaller, because such a search runs
/// for each token.
const MAX_STEPS_DISTINCT: usize = 100_000;
/// Maximum number of strings or numbers that are tried at one position to make an item differ from
/// others.
const MAX_OTHERS: usize = 300;

/// Bytes that may follow between values, cheapest first.
const BETWEEN: &[u8] = b"}],:\"0123456789-ntf[{";
/// Bytes that may follow in a number.
const NUMBER: &[u8] = b"0123456789.-+eE";

/// Finds bytes that lead from the parser's state to the end of a valid answer. Returns no bytes if
/// the answer may end here, and `None` if nothing was found within the limits. `scanner` must have
/// seen everything that the parser has consumed, and so must `watch`, which is set if items of
/// lists have to differ. At most `levels` brackets are nested beyond those that are open: in a
/// recursive schema, the search would otherwise descend forever.
pub fn search(
    parser: &mut TokenParser,
    mut scanner: Scanner,
    levels: usize,
    mut watch: Option<Watch>,
) -> Option<Vec<u8>> {
    if parser.is_accepting() {
        return Some(Vec::new());
    }
    // The parser has already advanced over the bytes that it found to be forced.
    let mut bytes = parser.parser.currently_forced_bytes().to_vec();
    scanner.push_all(&bytes);
    if let Some(watch) = &mut watch {
        watch.push_all(0, &bytes);
        if watch.found().is_some() {
            return None;
        }
    }
    if scanner.complete() {
        return Some(bytes);
    }
    let found = parser.parser.with_recognizer(|recognizer| {
        recognizer.trie_started("closing");
        let most = if watch.is_some() { MAX_STEPS_DISTINCT } else { MAX_STEPS };
        let deepest = scanner.depth() + levels;
        let mut search = Search { recognizer, path: Vec::new(), watch, steps: 0, most, deepest };
        let found = search.run(scanner);
        let Search { path, .. } = search;
        recognizer.pop_bytes(path.len());
        recognizer.trie_finished();
        found.map(|ends| (path, ends))
    });
    let (path, ends) = found?;
    bytes.extend(path);
    if ends.is_empty() {
        return Some(bytes);
    }
    // For a number at the top level, only the parser knows where it may end.
    ends.into_iter().find_map(|end| {
        let candidate = [bytes.as_slice(), &end].concat();
        let mut trial = parser.parser.clone();
        (trial.apply_token(&candidate, 0).is_ok() && trial.is_accepting()).then_some(candidate)
    })
}

/// A point where the search can take another way.
struct Choice {
    /// Length of the path at this point.
    length: usize,
    scanner: Scanner,
    watch: Option<Watch>,
    next: Next,
}

/// What can be tried next at a choice.
enum Next {
    /// The candidate with this index in [`BETWEEN`].
    Byte(usize),
    /// Another ending of a string or a number.
    Exit(Exits),
}

/// Enumerates the endings of a string (with the quotation mark) or of a number (without the byte
/// that follows it), in order of length.
struct Exits {
    /// Number of ways in which each state of the lexer was reached.
    seen: HashMap<(StateID, Place), usize>,
    queue: VecDeque<(Place, Vec<u8>)>,
    /// The last ending, from which the search continues.
    last: Option<(Place, Vec<u8>)>,
    /// Maximum number of ways that are followed to one state. One is enough, unless items have to
    /// differ.
    ways: usize,
    /// Maximum number of endings.
    most: usize,
    found: usize,
}

struct Search<'a, 'b> {
    recognizer: &'a mut ParserRecognizer<'b>,
    path: Vec<u8>,
    /// The watch, which has seen the path, if items have to differ.
    watch: Option<Watch>,
    steps: usize,
    most: usize,
    /// Maximum number of open brackets.
    deepest: usize,
}

impl Search<'_, '_> {
    /// Extends `path` to the end of the answer. For a number at the top level, returns the endings
    /// to try.
    fn run(&mut self, mut scanner: Scanner) -> Option<Vec<Vec<u8>>> {
        let mut choices: Vec<Choice> = Vec::new();
        loop {
            if self.repeats() {
                scanner = self.take_choice(&mut choices)?;
                continue;
            }
            if scanner.complete() && !self.path.is_empty() {
                return Some(Vec::new());
            }
            if self.steps > self.most || self.path.len() > MAX_BYTES {
                return None;
            }
            if scanner.depth() > self.deepest {
                scanner = self.take_choice(&mut choices)?;
                continue;
            }
            if self.forced(&mut scanner) {
                continue;
            }
            let ready = match scanner.place() {
                Place::Between => true,
                Place::Number if scanner.top_level_number() => return Some(self.number_endings()),
                Place::Literal(_) => match (b'a'..=b'z').find(|&byte| self.allowed(byte)) {
                    Some(letter) => {
                        self.step(letter, &mut scanner)?;
                        continue;
                    }
                    None => false,
                },
                place => {
                    let differs = self.watch.as_ref().is_some_and(Watch::is_within);
                    let mut exits = self.exits(place, differs);
                    match self.next_exit(&mut exits) {
                        Some(exit) => {
                            let others = self.choice(scanner, Next::Exit(exits));
                            for byte in exit {
                                self.step(byte, &mut scanner)?;
                            }
                            let is_name = place != Place::Number && self.allowed(b':');
                            if differs || is_name {
                                choices.push(others);
                            }
                            if place != Place::Number {
                                continue;
                            }
                            true
                        }
                        None => false,
                    }
                }
            };
            if ready {
                choices.push(self.choice(scanner, Next::Byte(0)));
            }
            scanner = self.take_choice(&mut choices)?;
        }
    }

    /// Takes the next byte if the lexer knows that only one is possible.
    fn forced(&mut self, scanner: &mut Scanner) -> bool {
        let state = self.recognizer.lexer_state();
        let NextByte::ForcedByte(byte) = self.recognizer.lexer_mut().next_byte(state) else { return false };
        if !self.try_byte(byte) {
            return false;
        }
        self.add(byte, scanner);
        true
    }

    fn add(&mut self, byte: u8, scanner: &mut Scanner) {
        self.path.push(byte);
        scanner.push(byte);
        if let Some(watch) = &mut self.watch {
            watch.push_all(0, &[byte]);
        }
    }

    /// Whether the path has an item that repeats another.
    fn repeats(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.found().is_some())
    }

    fn choice(&self, scanner: Scanner, next: Next) -> Choice {
        Choice { length: self.path.len(), scanner, watch: self.watch.clone(), next }
    }

    /// Pushes a byte that is known to be allowed; `None` if the lexer has failed meanwhile (it may
    /// be full).
    fn step(&mut self, byte: u8, scanner: &mut Scanner) -> Option<()> {
        if !self.try_byte(byte) {
            return None;
        }
        self.add(byte, scanner);
        Some(())
    }

    /// Pushes bytes that are known to be allowed.
    fn push_all(&mut self, bytes: &[u8]) -> Option<()> {
        self.steps += bytes.len();
        for (index, &byte) in bytes.iter().enumerate() {
            if !self.recognizer.try_push_byte(byte) {
                self.recognizer.pop_bytes(index);
                return None;
            }
        }
        Some(())
    }

    /// Goes back to the latest choice with an untried byte or ending, and takes it.
    fn take_choice(&mut self, choices: &mut Vec<Choice>) -> Option<Scanner> {
        while let Some(mut choice) = choices.pop() {
            if self.steps > self.most {
                return None;
            }
            self.recognizer.pop_bytes(self.path.len() - choice.length);
            self.path.truncate(choice.length);
            self.watch.clone_from(&choice.watch);
            let mut scanner = choice.scanner;
            match &mut choice.next {
                Next::Byte(next) => {
                    let tried = BETWEEN.iter().skip(*next).position(|&byte| {
                        let mut behind = scanner;
                        behind.push(byte);
                        behind.depth() <= self.deepest && self.try_byte(byte)
                    });
                    let Some(tried) = tried else { continue };
                    let byte = BETWEEN[*next + tried];
                    *next += tried + 1;
                    choices.push(choice);
                    self.add(byte, &mut scanner);
                }
                Next::Exit(exits) => {
                    let Some(exit) = self.next_exit(exits) else { continue };
                    choices.push(choice);
                    for byte in exit {
                        self.step(byte, &mut scanner)?;
                    }
                }
            }
            return Some(scanner);
        }
        None
    }

    /// The endings of the string or number at the end of the path: one, and more for names and if
    /// items have to differ.
    fn exits(&mut self, place: Place, differs: bool) -> Exits {
        let seen = HashMap::from([((self.recognizer.lexer_state(), place), 1)]);
        let (ways, most) = if differs { (MAX_OTHERS, MAX_OTHERS) } else { (1, MAX_NAMES) };
        Exits { seen, queue: VecDeque::from([(place, Vec::new())]), last: None, ways, most, found: 0 }
    }

    /// The next ending.
    fn next_exit(&mut self, exits: &mut Exits) -> Option<Vec<u8>> {
        if exits.found >= exits.most {
            return None;
        }
        let first_step = self.steps;
        if let Some((place, bytes)) = exits.last.take() {
            self.push_all(&bytes)?;
            self.go_further(exits, place, &bytes, first_step);
            self.recognizer.pop_bytes(bytes.len());
        }
        while let Some((place, mut bytes)) = exits.queue.pop_front() {
            self.push_all(&bytes)?;
            let ends: &[u8] = match place {
                Place::String => b"\"",
                Place::Number => b"}],",
                _ => b"",
            };
            if let Some(end) = ends.iter().copied().find(|&byte| self.allowed(byte)) {
                self.recognizer.pop_bytes(bytes.len());
                exits.last = Some((place, bytes.clone()));
                exits.found += 1;
                bytes.extend((place == Place::String).then_some(end));
                return Some(bytes);
            }
            self.go_further(exits, place, &bytes, first_step);
            self.recognizer.pop_bytes(bytes.len());
            if self.steps > self.most {
                break;
            }
        }
        None
    }

    /// Queues the states that one more byte leads to.
    fn go_further(&mut self, exits: &mut Exits, place: Place, bytes: &[u8], first_step: usize) {
        for byte in candidates(place) {
            if !self.try_byte(byte) {
                continue;
            }
            let mut scanner = Scanner::inside(place);
            scanner.push(byte);
            let next = scanner.place();
            let ways = exits.seen.entry((self.recognizer.lexer_state(), next)).or_insert(0);
            // A byte after the end belongs to none of the endings.
            if next != Place::Between && *ways < exits.ways {
                *ways += 1;
                let longer = [bytes, &[byte]].concat();
                // After too many steps, any ending will do: search depth first.
                if self.steps - first_step > MAX_BREADTH {
                    exits.queue.push_front((next, longer));
                } else {
                    exits.queue.push_back((next, longer));
                }
            }
            self.recognizer.pop_bytes(1);
        }
    }

    /// Continuations of a top-level number, shortest first.
    fn number_endings(&mut self) -> Vec<Vec<u8>> {
        let mut seen = HashSet::from([self.recognizer.lexer_state()]);
        let mut queue = VecDeque::from([Vec::new()]);
        let mut endings = Vec::new();
        while let Some(bytes) = queue.pop_front() {
            if self.push_all(&bytes).is_none() {
                break;
            }
            for &byte in NUMBER {
                if self.try_byte(byte) {
                    if seen.insert(self.recognizer.lexer_state()) {
                        queue.push_back([bytes.as_slice(), &[byte]].concat());
                    }
                    self.recognizer.pop_bytes(1);
                }
            }
            self.recognizer.pop_bytes(bytes.len());
            endings.push(bytes);
            if endings.len() >= 2_000 {
                break;
            }
        }
        endings
    }

    fn try_byte(&mut self, byte: u8) -> bool {
        self.steps += 1;
        self.recognizer.try_push_byte(byte)
    }

    fn allowed(&mut self, byte: u8) -> bool {
        let allowed = self.try_byte(byte);
        if allowed {
            self.recognizer.pop_bytes(1);
        }
        allowed
    }
}

/// Bytes to try inside a string or number. In strings, letters and digits come first, because they
/// read best.
fn candidates(place: Place) -> Vec<u8> {
    if place == Place::Number {
        return NUMBER.to_vec();
    }
    let all = 0x20..=0xf4u8;
    let plain = all.clone().filter(u8::is_ascii_alphanumeric);
    plain.chain(all.filter(|byte| !byte.is_ascii_alphanumeric())).collect()
}
