//! A short way to the end of a constrained answer: searched over bytes in the grammar itself, so that it also holds for
//! schemas with lengths, patterns and bounds.
//!
//! Between values the shortest continuation is tried first (a closing bracket before a comma, an empty string before a
//! number) and alternatives only when it leads nowhere. Inside a string or number, a breadth-first search over the
//! states of the grammar's lexer finds the fewest bytes that end it.

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
/// Longest closing that is looked for.
const MAX_BYTES: usize = 32_768;

/// What may follow between values, cheapest first.
const BETWEEN: &[u8] = b"}],:\"0123456789-ntf[{";
/// What may follow in a number.
const NUMBER: &[u8] = b"0123456789.-+eE";

/// Bytes that lead from the parser's state to the end of a valid answer: empty at an end, `None` if none was found within
/// the limits. `scanner` has seen what the parser has consumed.
pub fn search(parser: &mut TokenParser, mut scanner: Scanner) -> Option<Vec<u8>> {
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
        let mut search = Search { recognizer, path: Vec::new(), steps: 0 };
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

/// A point at which another byte could have been taken.
struct Choice {
    /// Length of the path before it.
    length: usize,
    scanner: Scanner,
    /// Index in [`BETWEEN`] of the next candidate.
    next: usize,
}

struct Search<'a, 'b> {
    recognizer: &'a mut ParserRecognizer<'b>,
    path: Vec<u8>,
    steps: usize,
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
            if self.forced(&mut scanner) {
                continue;
            }
            let ready = match scanner.place() {
                Place::Between => true,
                Place::Number if scanner.top_level_number() => return Some(self.number_endings()),
                Place::Literal(_) => match (b'a'..=b'z').find(|&byte| self.allowed(byte)) {
                    Some(letter) => {
                        self.step(letter, &mut scanner);
                        continue;
                    }
                    None => false,
                },
                place => match self.shortest_exit(place) {
                    Some(exit) => {
                        for byte in exit {
                            self.step(byte, &mut scanner);
                        }
                        if place != Place::Number {
                            continue;
                        }
                        true
                    }
                    None => false,
                },
            };
            if ready {
                choices.push(Choice { length: self.path.len(), scanner, next: 0 });
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

    /// Pushes a byte that is known to be allowed.
    fn step(&mut self, byte: u8, scanner: &mut Scanner) {
        let pushed = self.try_byte(byte);
        debug_assert!(pushed, "the byte was allowed a moment ago");
        self.path.push(byte);
        scanner.push(byte);
    }

    /// Goes back to the latest choice that has an untried byte, and takes it.
    fn take_choice(&mut self, choices: &mut Vec<Choice>) -> Option<Scanner> {
        while let Some(choice) = choices.last_mut() {
            self.recognizer.pop_bytes(self.path.len() - choice.length);
            self.path.truncate(choice.length);
            while let Some(&byte) = BETWEEN.get(choice.next) {
                choice.next += 1;
                let scanner = choice.scanner;
                if self.try_byte(byte) {
                    self.path.push(byte);
                    let mut scanner = scanner;
                    scanner.push(byte);
                    return Some(scanner);
                }
            }
            choices.pop();
        }
        None
    }

    /// The fewest bytes that end the string in which the path stands, its quotation mark included, or that complete a
    /// number, what follows it excluded.
    fn shortest_exit(&mut self, place: Place) -> Option<Vec<u8>> {
        let mut seen = HashSet::from([(self.recognizer.lexer_state(), place)]);
        let mut queue = VecDeque::from([(place, Vec::new())]);
        let first_step = self.steps;
        while let Some((place, mut bytes)) = queue.pop_front() {
            self.steps += bytes.len();
            let pushed = bytes.iter().all(|&byte| self.recognizer.try_push_byte(byte));
            debug_assert!(pushed, "each prefix was allowed when it was found");
            let exits: &[u8] = match place {
                Place::String => b"\"",
                Place::Number => b"}],",
                _ => b"",
            };
            if let Some(exit) = exits.iter().copied().find(|&byte| self.allowed(byte)) {
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
            let pushed = bytes.iter().all(|&byte| self.recognizer.try_push_byte(byte));
            debug_assert!(pushed, "each prefix was allowed when it was found");
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
