//! A short way to the end of a constrained answer: searched over bytes in the grammar itself, so that it also holds for
//! schemas with lengths, patterns and bounds.
//!
//! Between values the shortest continuation is tried first (a closing bracket before a comma, an empty string before a
//! number) and alternatives only when it leads nowhere. Inside a string or number, a breadth-first search over the
//! states of the grammar's lexer finds the fewest bytes that end it; where that is a name, other
//! names are alternatives too.

use std::collections::{HashSet, VecDeque};

use llguidance::TokenParser;
use llguidance::derivre::NextByte;
use llguidance::earley::ParserRecognizer;
use toktrie::Recognizer;

use super::scanner::{Place, Scanner};

/// Bytes tried in one search, at most: bounds the time of a schema whose shortest instance is hard to find (about 0.1 s).
const MAX_STEPS: usize = 400_000;
/// Of these, for the breadth-first search of one string or number.
const MAX_BREADTH: usize = 60_000;
/// Names that are tried at one place.
const MAX_NAMES: usize = 48;
/// Longest closing that is looked for.
const MAX_BYTES: usize = 32_768;

/// What may follow between values, cheapest first.
const BETWEEN: &[u8] = b"}],:\"0123456789-ntf[{";
/// What may follow in a number.
const NUMBER: &[u8] = b"0123456789.-+eE";

/// Bytes that lead from the parser's state to the end of a valid answer: empty at an end, `None` if none was found within
/// the limits. `scanner` has seen what the parser has consumed. No more than `levels` brackets are
/// opened within each other: where a value may hold others of its own kind, the search would follow
/// them without end.
pub fn search(parser: &mut TokenParser, mut scanner: Scanner, levels: usize) -> Option<Vec<u8>> {
    if parser.is_accepting() {
        return Some(Vec::new());
    }
    // The parser's own state is behind the bytes that it has found to be forced.
    let mut bytes = parser.parser.currently_forced_bytes().to_vec();
    scanner.push_all(&bytes);
    if scanner.complete() {
        return Some(bytes);
    }
    let found = parser.parser.with_recognizer(|recognizer| {
        recognizer.trie_started("closing");
        let deepest = scanner.depth() + levels;
        let mut search = Search { recognizer, path: Vec::new(), steps: 0, deepest };
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
    // A number at the top level: only the parser can say where it may end.
    ends.into_iter().find_map(|end| {
        let candidate = [bytes.as_slice(), &end].concat();
        let mut trial = parser.parser.clone();
        (trial.apply_token(&candidate, 0).is_ok() && trial.is_accepting()).then_some(candidate)
    })
}

/// A point at which another way could have been taken.
struct Choice {
    /// Length of the path before it.
    length: usize,
    scanner: Scanner,
    /// The next candidate: in [`BETWEEN`], or of the names that may be written, shortest first.
    next: usize,
    is_name: bool,
}

struct Search<'a, 'b> {
    recognizer: &'a mut ParserRecognizer<'b>,
    path: Vec<u8>,
    steps: usize,
    /// Brackets that may be open.
    deepest: usize,
}

impl Search<'_, '_> {
    /// Extends `path` to the end of the answer. For a number at the top level, gives the endings to be tried.
    fn run(&mut self, mut scanner: Scanner) -> Option<Vec<Vec<u8>>> {
        let mut choices: Vec<Choice> = Vec::new();
        loop {
            if scanner.complete() && !self.path.is_empty() {
                return Some(Vec::new());
            }
            if self.steps > MAX_STEPS || self.path.len() > MAX_BYTES {
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
                place => match self.exit(place, 0) {
                    Some(exit) => {
                        let (length, before) = (self.path.len(), scanner);
                        for byte in exit {
                            self.step(byte, &mut scanner)?;
                        }
                        if place != Place::Number {
                            if self.allowed(b':') {
                                choices.push(Choice { length, scanner: before, next: 1, is_name: true });
                            }
                            continue;
                        }
                        true
                    }
                    None => false,
                },
            };
            if ready {
                choices.push(Choice { length: self.path.len(), scanner, next: 0, is_name: false });
            }
            scanner = self.take_choice(&mut choices)?;
        }
    }

    /// Takes the byte that the lexer says is the only one, if it says so.
    fn forced(&mut self, scanner: &mut Scanner) -> bool {
        let state = self.recognizer.lexer_state();
        let NextByte::ForcedByte(byte) = self.recognizer.lexer_mut().next_byte(state) else { return false };
        if !self.try_byte(byte) {
            return false;
        }
        self.path.push(byte);
        scanner.push(byte);
        true
    }

    /// Pushes a byte that is known to be allowed; `None` if the lexer gave up since (it may be full).
    fn step(&mut self, byte: u8, scanner: &mut Scanner) -> Option<()> {
        if !self.try_byte(byte) {
            return None;
        }
        self.path.push(byte);
        scanner.push(byte);
        Some(())
    }

    /// Pushes all of these, which are known to be allowed.
    fn push_all(&mut self, bytes: &[u8]) -> Option<()> {
        for (index, &byte) in bytes.iter().enumerate() {
            if !self.recognizer.try_push_byte(byte) {
                self.recognizer.pop_bytes(index);
                return None;
            }
        }
        Some(())
    }

    /// Goes back to the latest choice that has an untried way, and takes it.
    fn take_choice(&mut self, choices: &mut Vec<Choice>) -> Option<Scanner> {
        while let Some(choice) = choices.last_mut() {
            self.recognizer.pop_bytes(self.path.len() - choice.length);
            self.path.truncate(choice.length);
            if choice.is_name {
                choice.next += 1;
                let (skipped, mut scanner) = (choice.next - 1, choice.scanner);
                if skipped < MAX_NAMES
                    && let Some(exit) = self.exit(scanner.place(), skipped)
                {
                    for byte in exit {
                        self.step(byte, &mut scanner)?;
                    }
                    return Some(scanner);
                }
                choices.pop();
                continue;
            }
            while let Some(&byte) = BETWEEN.get(choice.next) {
                choice.next += 1;
                let mut scanner = choice.scanner;
                scanner.push(byte);
                if scanner.depth() <= self.deepest && self.try_byte(byte) {
                    self.path.push(byte);
                    return Some(scanner);
                }
            }
            choices.pop();
        }
        None
    }

    /// The fewest bytes that end the string in which the path stands, its quotation mark included, or that complete a
    /// number, what follows it excluded; of others that mean something else, so many are skipped.
    fn exit(&mut self, place: Place, mut skipped: usize) -> Option<Vec<u8>> {
        let mut seen = HashSet::from([(self.recognizer.lexer_state(), place)]);
        let mut queue = VecDeque::from([(place, Vec::new())]);
        let first_step = self.steps;
        while let Some((place, mut bytes)) = queue.pop_front() {
            self.steps += bytes.len();
            self.push_all(&bytes)?;
            let exits: &[u8] = match place {
                Place::String => b"\"",
                Place::Number => b"}],",
                _ => b"",
            };
            let exit = exits.iter().copied().find(|&byte| self.allowed(byte));
            if exit.is_some() && skipped > 0 {
                skipped -= 1;
            } else if let Some(exit) = exit {
                self.recognizer.pop_bytes(bytes.len());
                bytes.extend((place == Place::String).then_some(exit));
                return Some(bytes);
            }
            for byte in candidates(place) {
                if !self.try_byte(byte) {
                    continue;
                }
                let mut scanner = Scanner::inside(place);
                scanner.push(byte);
                let next = scanner.place();
                if seen.insert((self.recognizer.lexer_state(), next)) {
                    let longer = [bytes.as_slice(), &[byte]].concat();
                    // Out of patience, any way out will do: depth first.
                    if self.steps - first_step > MAX_BREADTH {
                        queue.push_front((next, longer));
                    } else {
                        queue.push_back((next, longer));
                    }
                }
                self.recognizer.pop_bytes(1);
            }
            self.recognizer.pop_bytes(bytes.len());
            if self.steps > MAX_STEPS {
                break;
            }
        }
        None
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

/// Bytes to try inside a number, or a string: letters and digits first, they read best.
fn candidates(place: Place) -> Vec<u8> {
    if place == Place::Number {
        return NUMBER.to_vec();
    }
    let all = 0x20..=0xf4u8;
    let plain = all.clone().filter(u8::is_ascii_alphanumeric);
    plain.chain(all.filter(|byte| !byte.is_ascii_alphanumeric())).collect()
}
