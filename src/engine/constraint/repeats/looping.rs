//! Detects when a text, number or list of an answer loops, or is much longer than it could need to
//! be.
//!
//! Only exact repetition is a loop: tables, dumps, numbered lines and logs differ from line to
//! line. A text that occurs in the prompt was copied, however often it repeats itself.

use std::sync::Arc;

use crate::engine::constraint::json_cursor::{Place, Scanner};
use crate::engine::constraint::token_budget::Due;
use crate::engine::{CloseReason, Longest};

/// Number of consecutive bytes that equal those one phrase earlier. From this many on, text is held
/// back: it may turn out to be a loop, and is sent if it continues differently.
const SUSPECT: usize = 24;
/// A text with this many repeated bytes is a loop, provided they make up at least two more copies.
/// Models that copy long lines repeat them and still continue: the shipped one after 564 bytes.
const LOOP: usize = 600;
/// The same in an answer that has looped before.
const NEXT_LOOP: usize = 200;
/// A text that ends with this many bytes of one phrase, in at least two copies, has ended in a
/// loop.
const END: usize = 150;
/// Longest phrase that is recognised, in bytes.
const LONGEST_PHRASE: usize = 512;
/// Maximum length of a number in a guarded answer, in bytes. A double has 17 digits.
const LONGEST_NUMBER: usize = 24;
/// In any answer, a fraction with this many significant digits is ended if its last `DIGITS_ROUND`
/// digits repeat. No reader uses as many.
const DIGITS: usize = 128;
const DIGITS_ROUND: usize = 64;
/// Longest group of digits that repeats in them.
const LONGEST_GROUP: usize = 16;

/// Follows a JSON answer and detects loops.
#[derive(Debug, Clone)]
pub struct Loops {
    prompt: Arc<str>,
    /// Maximum bytes of texts and lists; `None` if only numbers are checked.
    longest: Option<Longest>,
    /// Maximum tokens of the answer, if it is known how many it may need.
    most: usize,
    scanner: Scanner,
    read: usize,
    tokens: usize,
    /// For each open bracket: where the list began, or `None` for an object.
    open: Vec<Option<usize>>,
    /// The current string (as JSON writes it) or number, and for each byte the token that it came
    /// with.
    value: Vec<u8>,
    of_token: Vec<usize>,
    /// For each length of a phrase: number of consecutive bytes, up to the last one, that equal
    /// those one phrase earlier.
    runs: Vec<usize>,
    /// The token since which the text may be a loop.
    held: Option<usize>,
    /// Number of tokens to keep of an answer whose text has looped. The rest is to be taken back.
    round: Option<usize>,
    /// Whether a text has looped before.
    again: bool,
}

impl Loops {
    /// The state at the beginning of an answer to `prompt` with at most `most` tokens.
    pub fn new(longest: Option<Longest>, most: usize, prompt: Arc<str>) -> Self {
        Self {
            prompt,
            longest,
            most,
            scanner: Scanner::START,
            read: 0,
            tokens: 0,
            open: vec![],
            value: vec![],
            of_token: vec![],
            runs: vec![0; LONGEST_PHRASE + 1],
            held: None,
            round: None,
            again: false,
        }
    }

    /// The state at the beginning of the same answer.
    pub fn anew(&self) -> Self {
        Self { again: self.again, ..Self::new(self.longest, self.most, Arc::clone(&self.prompt)) }
    }

    /// Advances by a token.
    pub fn push_all(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.push(byte);
        }
        self.tokens += 1;
        if self.longest.is_some() && self.scanner.place() != Place::Number {
            self.suspect();
        }
    }

    /// If a text has looped, the number of tokens to keep: the text should have ended there.
    pub fn round(&self) -> Option<usize> {
        self.round
    }

    /// Accepts what the answer has up to here.
    pub fn settle(&mut self) {
        self.round = None;
    }

    /// Records that a text was ended because it looped.
    pub fn set_again(&mut self) {
        self.again = true;
    }

    /// From now on, everything is to be ended.
    pub fn exhaust(&mut self) {
        self.most = 0;
    }

    /// The token from which on a text may turn out to be a loop.
    pub fn held(&self) -> Option<usize> {
        self.held
    }

    fn push(&mut self, byte: u8) {
        let before = self.scanner.place();
        self.scanner.push(byte);
        self.read += 1;
        match (before, self.scanner.place()) {
            (Place::Between | Place::Number, Place::String) => self.begin(),
            (Place::Between, Place::Number) => {
                self.begin();
                self.more(byte);
            }
            (Place::String, Place::Between) => self.text_ends(),
            (_, Place::Between) => match byte {
                b'[' => self.open.push(Some(self.read)),
                b'{' => self.open.push(None),
                b']' | b'}' => drop(self.open.pop()),
                _ => {}
            },
            (_, Place::String | Place::Escape | Place::Unicode(_) | Place::Number) => self.more(byte),
            _ => {}
        }
    }

    fn begin(&mut self) {
        self.value.clear();
        self.of_token.clear();
        self.runs.fill(0);
        self.held = None;
    }

    fn more(&mut self, byte: u8) {
        let most = self.value.len().min(LONGEST_PHRASE);
        for (run, &earlier) in self.runs[1..=most].iter_mut().zip(self.value.iter().rev()) {
            *run = if earlier == byte { *run + 1 } else { 0 };
        }
        self.value.push(byte);
        self.of_token.push(self.tokens);
    }

    /// Checks the current text after a token.
    fn suspect(&mut self) {
        if self.round.is_some() {
            return;
        }
        if self.scanner.place() == Place::Between || self.runs.iter().all(|&run| run < SUSPECT) {
            self.held = None;
            return;
        }
        self.held.get_or_insert(self.tokens - 1);
        let least = if self.again { NEXT_LOOP } else { LOOP };
        self.round = self.goes_round(|phrase| least.max(2 * phrase));
    }

    fn text_ends(&mut self) {
        if self.longest.is_some() && self.round.is_none() {
            self.round = self.goes_round(|phrase| phrase.max(END.saturating_sub(phrase)));
        }
    }

    /// The token in which the text begins to loop, if it has repeated at least `least(phrase)`
    /// bytes and the prompt doesn't repeat them.
    fn goes_round(&self, least: impl Fn(usize) -> usize) -> Option<usize> {
        let mut runs = self.runs.iter().copied().enumerate().skip(1);
        let (phrase, run) = runs.find(|&(phrase, run)| run >= SUSPECT && run >= least(phrase))?;
        let begin = self.value.len() - run - phrase;
        let (mut copied, mut other) = (phrase + SUSPECT - 1, phrase + run);
        if self.is_copied(begin, other) {
            return None;
        }
        // Keep what the prompt repeats as often, and what was sent before it became suspect.
        while other - copied > 1 {
            let middle = copied.midpoint(other);
            let known = if self.is_copied(begin, middle) { &mut copied } else { &mut other };
            *known = middle;
        }
        Some(self.of_token[begin + copied].max(self.held?))
    }

    /// Whether the prompt contains `length` bytes of the text from `begin` on.
    fn is_copied(&self, begin: usize, length: usize) -> bool {
        let part = String::from_utf8_lossy(&self.value[begin..begin + length]);
        // The first and last characters may be incomplete.
        let part = part.trim_matches(char::REPLACEMENT_CHARACTER);
        let text = serde_json::from_str::<String>(&format!("\"{part}\""));
        self.prompt.contains(text.as_deref().unwrap_or(part))
    }

    /// What must come next, and why, if the answer would otherwise not end.
    pub fn due(&self) -> Option<(Due, CloseReason)> {
        let longest = self.longest;
        let too_long = longest.is_some_and(|longest| {
            let long = |from: &usize| self.read - from >= longest.list;
            self.tokens >= self.most || self.open.iter().flatten().any(long)
        });
        match self.scanner.place() {
            Place::String if too_long || longest.is_some_and(|longest| self.value.len() >= longest.text) => {
                Some((Due::Quote, CloseReason::TooLong))
            }
            Place::Number if longest.is_some() && self.value.len() >= LONGEST_NUMBER => {
                Some((Due::Number, CloseReason::Loop))
            }
            Place::Number if self.is_round_fraction() => Some((Due::Number, CloseReason::Loop)),
            Place::Between if too_long && matches!(self.open.last(), Some(Some(_))) => {
                Some((Due::Bracket, CloseReason::TooLong))
            }
            _ => None,
        }
    }

    fn is_round_fraction(&self) -> bool {
        let Some(point) = self.value.iter().position(|&byte| byte == b'.') else { return false };
        let digits = &self.value[point + 1..];
        if !digits.iter().all(u8::is_ascii_digit) {
            return false;
        }
        let whole = self.value[..point].iter().any(|digit| (b'1'..=b'9').contains(digit));
        let first = if whole { Some(0) } else { digits.iter().position(|&digit| digit != b'0') };
        let significant = first.map_or(0, |first| digits.len() - first);
        significant >= DIGITS && self.runs[1..=LONGEST_GROUP].iter().any(|&run| run >= DIGITS_ROUND)
    }
}

#[cfg(test)]
#[allow(clippy::format_collect, reason = "texts of tests are short")]
mod tests {
    use super::*;

    /// What is due first, and how many bytes were read by then.
    fn due(longest: Option<usize>, prompt: &str, text: &str) -> Option<(Due, CloseReason, usize)> {
        let longest = longest.map(|longest| Longest { text: longest, list: longest });
        let mut loops = Loops::new(longest, usize::MAX, prompt.into());
        text.bytes().enumerate().find_map(|(index, byte)| {
            loops.push_all(&[byte]);
            loops.due().map(|(due, why)| (due, why, index + 1))
        })
    }

    /// For a text with one byte per token: what is kept when it is found to loop, and how many
    /// bytes were read by then.
    fn round(prompt: &str, text: &str) -> Option<(String, usize)> {
        let longest = Some(Longest { text: 100_000, list: 100_000 });
        let mut loops = Loops::new(longest, usize::MAX, prompt.into());
        let mut told = 0;
        for (index, byte) in text.bytes().enumerate() {
            loops.push_all(&[byte]);
            if let Some(round) = loops.round() {
                assert!(round >= told, "what was told can't be taken back");
                return Some((text[..round].to_owned(), index + 1));
            }
            told = loops.held().unwrap_or(index + 1);
        }
        None
    }

    const LONG: Option<usize> = Some(100_000);

    #[test]
    fn what_says_the_same_all_the_time_is_a_loop() {
        let sentence = "The disk is full and the job has failed. ";
        for (phrase, before) in [("x", ""), (sentence, ""), ("ab ", "so: "), ("a\\n", "\\\""), ("0", "")] {
            let head = format!("{{\"content\":\"{before}");
            let (stays, read) = round("", &format!("{head}{}", phrase.repeat(900))).unwrap();
            // One copy is kept, and what was sent of the next. A phrase may begin a little earlier.
            let near = |found: usize, expected: usize| (expected - 2..=expected).contains(&found);
            assert!(near(read, head.len() + LOOP + phrase.len()), "{phrase}: {read}");
            assert!(near(stays.len(), head.len() + phrase.len() + SUSPECT - 1), "{phrase}: {stays}");
        }
        // A phrase that is longer than `LOOP` is a loop after its third copy.
        let phrase: String = (0..40).map(|line| format!("line {line}; ")).collect();
        let (stays, read) = round("", &format!("[\"{}", phrase.repeat(4))).unwrap();
        assert_eq!((stays.len(), read), (2 + phrase.len() + SUSPECT - 1, 2 + 3 * phrase.len()));
        // A text that ends in repetition is a loop sooner.
        let end = format!("{{\"summary\":\"{}\"", sentence.repeat(5));
        let (stays, read) = round("", &end).unwrap();
        assert_eq!((stays.len(), read), (12 + sentence.len() + SUSPECT - 1, end.len()));
        assert_eq!(round("", &format!("{{\"summary\":\"{}\"", sentence.repeat(3))), None);
    }

    #[test]
    fn honest_texts_are_no_loops() {
        let dump: String =
            (0..60).map(|row| format!("{:08x}  00 00 00 00 00 00 00 00\\n", row * 8)).collect();
        let table: String =
            (0..40).map(|row| format!("| {row} | ok | ok | ok |\\n|---|---|---|---|\\n")).collect();
        let numbered: String = (1..90).map(|line| format!("{line}. the same again\\n")).collect();
        let log: String = (0..60).map(|second| format!("12:00:{second:02} GET /health 200\\n")).collect();
        let rule = format!("Title\\n{}\\ntext", "=".repeat(400));
        // Repeated several times, and then something else.
        let stutter = format!("{}and then it went on.", "- Extend FetchContext to resolve it.\\n".repeat(6));
        for text in [dump, table, numbered, log, rule, stutter] {
            let text = format!("{{\"content\":\"{text}\"}}");
            assert_eq!((round("", &text), due(LONG, "", &text)), (None, None), "{text}");
        }
        // Text from the prompt was copied; text that continues beyond it was not.
        let prompt = format!("all zero: {}\n{}.", "00 ".repeat(300), "-".repeat(900));
        let copied = prompt.replace('\n', "\\n");
        assert_eq!(round(&prompt, &format!("{{\"content\":\"{copied}\"}}")), None);
        let beyond = format!("{{\"content\":\"{}", "00 ".repeat(400));
        let (stays, read) = round(&prompt, &beyond).unwrap();
        assert_eq!((stays.len(), read), (r#"{"content":""#.len() + 900, r#"{"content":""#.len() + 901));
        // If texts are not guarded, they are left alone.
        let mut free = Loops::new(None, usize::MAX, "".into());
        free.push_all(format!("[\"{}", "ha ".repeat(3_000)).as_bytes());
        assert_eq!((free.round(), free.held(), free.due()), (None, None, None));
    }

    #[test]
    fn numbers_end() {
        let number = |digits: &str| format!("{{\"salience\":{digits}");
        assert_eq!(
            due(LONG, "", &number(&"7".repeat(40))).unwrap(),
            (Due::Number, CloseReason::Loop, 12 + 24)
        );
        assert_eq!(due(LONG, "", &number("0.12345678901234567,")), None);
        // For a client's own schema, only digits that no reader uses are cut.
        let third = format!("0.{}", "3".repeat(400));
        assert_eq!(due(None, "", &number(&third)).unwrap().2, 12 + 2 + 128);
        for honest in [
            format!("1{}", "0".repeat(400)),
            format!("0.{}1", "0".repeat(400)),
            format!("0.{}e-5", "12".repeat(40)),
            format!("0.{}", "1234567890123456789".repeat(20)),
        ] {
            assert_eq!(due(None, "", &number(&honest)), None, "{honest}");
        }
    }

    #[test]
    fn what_is_much_too_long_is_ended() {
        let varied: String = (0..100).map(|word| format!("word{word} ")).collect();
        assert_eq!(
            due(Some(300), "", &format!("{{\"content\":\"{varied}")).unwrap(),
            (Due::Quote, CloseReason::TooLong, 12 + 300)
        );
        let items: String = (0..100).map(|word| format!("\"word{word}\",")).collect();
        let (found, why, read) = due(Some(300), "", &format!("{{\"concepts\":[{items}")).unwrap();
        assert_eq!(why, CloseReason::TooLong);
        assert!(matches!(found, Due::Quote | Due::Bracket) && (313..320).contains(&read), "{found:?} {read}");
        let few = &items[..items.find("\"word20\"").unwrap() - 1];
        assert_eq!(due(Some(300), "", &format!("{{\"a\":[{few}],\"b\":[{few}]}}")), None);
    }
}
