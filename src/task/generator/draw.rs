//! Where facts come from: two random streams, one for the shape of a row and one for what it says.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::{Split, pools, words};

/// Draws choices and facts for one row. Twins share `shape` and differ in `fact` and `side`.
pub struct Draw {
    shape: ChaCha8Rng,
    fact: ChaCha8Rng,
    split: Split,
    side: bool,
}

/// A generator seeded by the hash of these parts.
pub fn stream(label: &str, seed: u64, split: Split, number: u64, salt: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(label);
    for part in [seed, u64::from(split == Split::Eval), number, salt] {
        hash.update(part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// Which split a fact belongs to: a quarter of all strings is kept for evaluation (FNV-1a of the text).
pub fn split_of(fact: &str) -> Split {
    let hash = fact.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV mix best after folding the high ones in.
    if (hash ^ (hash >> 32)).is_multiple_of(4) { Split::Eval } else { Split::Train }
}

impl Draw {
    /// Draws from these streams.
    pub fn new(shape: ChaCha8Rng, fact: ChaCha8Rng, split: Split, side: bool) -> Self {
        Self { shape, fact, split, side }
    }

    /// True with probability `p`, by shape.
    pub fn chance(&mut self, p: f64) -> bool {
        self.shape.random_bool(p)
    }

    /// A count in `low..=high`, by shape.
    pub fn count(&mut self, low: usize, high: usize) -> usize {
        self.shape.random_range(low..=high)
    }

    /// One of these, by shape.
    pub fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list.choose(&mut self.shape).copied().unwrap_or_default()
    }

    /// One of two opposites: twins get different ones.
    pub fn opposite<'a>(&mut self, a: &'a str, b: &'a str) -> &'a str {
        if self.shape.random_bool(0.5) == self.side { a } else { b }
    }

    /// A number in `low..=high`, by fact, of any split.
    pub fn roll(&mut self, low: u64, high: u64) -> u64 {
        self.fact.random_range(low..=high)
    }

    /// One of these, by fact, of any split: for words that are no facts.
    pub fn any<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list.choose(&mut self.fact).copied().unwrap_or_default()
    }

    /// Draws until the result belongs to this row's split.
    fn mine(&mut self, make: impl Fn(&mut Self) -> String) -> String {
        // A pool with no member in this split would loop for ever; none is that small, and 200 misses are
        // less likely than 1e-24 at one hit in four.
        for _ in 0..200 {
            let made = make(self);
            if split_of(&made) == self.split {
                return made;
            }
        }
        make(self)
    }

    /// One of these facts, of this split.
    pub fn from(&mut self, list: &[&str]) -> String {
        self.mine(|draw| draw.any(list).to_owned())
    }

    /// Any common word; one in eight with an ending or a beginning.
    pub fn word(&mut self) -> String {
        if self.roll(0, 7) == 0 {
            words::inflected(&mut self.fact)
        } else {
            words::any(&mut self.fact).to_owned()
        }
    }

    /// A noun.
    pub fn noun(&mut self) -> &'static str {
        words::noun(&mut self.fact)
    }

    /// A verb in its base form.
    pub fn verb(&mut self) -> &'static str {
        words::verb(&mut self.fact)
    }

    /// An adjective.
    pub fn adjective(&mut self) -> &'static str {
        words::adjective(&mut self.fact)
    }

    /// `adjective noun`, `noun noun` or `noun`.
    pub fn phrase(&mut self) -> String {
        match self.roll(0, 3) {
            0 | 1 => format!("{} {}", self.adjective(), self.noun()),
            2 => format!("{} {}", self.noun(), self.noun()),
            _ => self.noun().to_owned(),
        }
    }

    /// A pronounceable word that no dictionary has.
    pub fn syllables(&mut self, least: u64, most: u64) -> String {
        const ONSETS: [&str; 26] = [
            "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br",
            "cl", "dr", "gr", "pl", "st", "tr", "qu",
        ];
        const VOWELS: [&str; 9] = ["a", "e", "i", "o", "u", "ai", "ea", "ou", "y"];
        const CODAS: [&str; 12] = ["", "", "", "", "l", "n", "r", "s", "x", "nd", "th", "m"];
        let mut word = String::new();
        for _ in 0..self.roll(least, most) {
            word += self.any(&ONSETS);
            word += self.any(&VOWELS);
            word += self.any(&CODAS);
        }
        word
    }

    /// `length` random characters of `alphabet`.
    pub fn characters(&mut self, alphabet: &[u8], length: u64) -> String {
        (0..length).map(|_| char::from(*alphabet.choose(&mut self.fact).unwrap_or(&b'x'))).collect()
    }

    /// Something random that can only be copied: letters, digits, hex, mixed case.
    pub fn gibberish(&mut self) -> String {
        self.mine(|draw| {
            let length = draw.roll(3, 12);
            match draw.roll(0, 6) {
                0 => draw.characters(b"abcdefghijklmnopqrstuvwxyz", length),
                1 => draw.characters(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", length.min(7)),
                2 => draw.characters(b"abcdefghijklmnopqrstuvwxyz0123456789", length),
                3 => {
                    draw.characters(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", length)
                }
                4 => draw.characters(b"0123456789abcdef", length.max(6)),
                5 => draw.syllables(2, 4),
                _ => format!("{}-{}", draw.syllables(1, 2), draw.characters(b"0123456789", 3)),
            }
        })
    }

    /// A lower-case stem of an identifier or file.
    fn stem(&mut self) -> String {
        match self.roll(0, 5) {
            0 => self.syllables(1, 3),
            1 => self.verb().to_owned(),
            2 => self.adjective().to_owned(),
            _ => self.noun().to_owned(),
        }
    }

    /// `snake_case`, sometimes with a digit at the end.
    pub fn snake(&mut self) -> String {
        self.mine(|draw| {
            let parts: Vec<String> = (0..draw.roll(2, 4)).map(|_| draw.stem()).collect();
            let number = if draw.roll(0, 6) == 0 { format!("_{}", draw.roll(0, 64)) } else { String::new() };
            parts.join("_") + &number
        })
    }

    /// `PascalCase`.
    pub fn pascal(&mut self) -> String {
        self.mine(|draw| (0..draw.roll(2, 3)).map(|_| capitalised(&draw.stem())).collect())
    }

    /// An identifier in one of the usual spellings.
    pub fn identifier(&mut self) -> String {
        match self.roll(0, 9) {
            0..=2 => self.snake(),
            3 | 4 => self.pascal(),
            5 => {
                let name = self.pascal();
                name[..1].to_ascii_lowercase() + &name[1..]
            }
            6 => format!("{}::{}", self.pascal(), self.snake()),
            7 => self.mine(|draw| format!("{}.{}", draw.stem(), draw.stem())) + "()",
            8 => self.mine(|draw| {
                format!("{}{}", draw.any(&["q", "Q", "f", "i", "u", "bf", "sm", "fp"]), draw.roll(2, 128))
                    + draw.any(&["", "", "_0", "_K", "_1"])
            }),
            _ => self.mine(|draw| format!("{}-{}", draw.stem(), draw.stem())),
        }
    }

    /// `UPPER_SNAKE`.
    pub fn variable(&mut self) -> String {
        self.snake().to_ascii_uppercase()
    }

    /// Given and family name; one in four is made up.
    pub fn person(&mut self) -> String {
        format!("{} {}", self.first(), self.last())
    }

    /// A given name.
    pub fn first(&mut self) -> String {
        if self.roll(0, 3) == 0 {
            self.mine(|draw| capitalised(&draw.syllables(2, 3)))
        } else {
            self.from(pools::FIRST)
        }
    }

    fn last(&mut self) -> String {
        if self.roll(0, 3) == 0 {
            self.mine(|draw| capitalised(&draw.syllables(2, 3)))
        } else {
            self.from(pools::LAST)
        }
    }

    /// A made-up or known tool.
    pub fn tool(&mut self) -> String {
        if self.roll(0, 2) == 0 {
            self.mine(|draw| capitalised(&draw.syllables(2, 3)))
        } else {
            self.from(pools::TOOLS)
        }
    }

    /// A file name.
    pub fn file(&mut self) -> String {
        self.mine(|draw| {
            let stem = match draw.roll(0, 3) {
                0 => format!("{}_{}", draw.stem(), draw.stem()),
                1 => format!("{}-{}", draw.stem(), draw.stem()),
                2 => capitalised(&draw.stem()),
                _ => draw.stem(),
            };
            format!("{stem}.{}", draw.any(pools::ENDINGS))
        })
    }

    /// A path of one to five folders and a file.
    pub fn path(&mut self) -> String {
        let mut path = match self.roll(0, 3) {
            0 => self.mine(|draw| format!("{}-{}", draw.stem(), draw.stem())),
            _ => self.any(pools::ROOTS).to_owned(),
        };
        for _ in 0..self.roll(0, 3) {
            path.push('/');
            path += &self.stem();
        }
        path.push('/');
        path + &self.file()
    }

    /// A whole number of three or more digits, or a small one that no split can own.
    pub fn integer(&mut self) -> String {
        self.mine_if_long(|draw| match draw.roll(0, 9) {
            0..=2 => draw.roll(0, 99).to_string(),
            3..=5 => draw.roll(100, 9999).to_string(),
            6 => draw.roll(10_000, 99_999_999).to_string(),
            7 => grouped(draw.roll(1000, 99_999_999)),
            8 => (draw.roll(1, 99) * 100).to_string(),
            _ => (1_u64 << draw.roll(3, 20)).to_string(),
        })
    }

    fn mine_if_long(&mut self, make: impl Fn(&mut Self) -> String) -> String {
        for _ in 0..40 {
            let made = make(self);
            if made.len() < 3 || split_of(&made) == self.split {
                return made;
            }
        }
        self.roll(0, 99).to_string()
    }

    /// A decimal number.
    pub fn decimal(&mut self) -> String {
        self.mine_if_long(|draw| {
            let (whole, places) = (draw.roll(0, 999), draw.roll(1, 3));
            format!("{whole}.{}", draw.characters(b"0123456789", places))
        })
    }

    /// Any number, with its sign, percent, exponent or unit.
    pub fn number(&mut self) -> String {
        match self.roll(0, 12) {
            0..=4 => self.integer(),
            5 | 6 => self.decimal(),
            7 => self.percent(),
            8 => format!("{} {}", self.integer(), self.any(pools::UNITS)),
            9 => format!("{}{}", self.decimal(), self.any(&["ms", "s", "GB", "MB", "x", "us", "GHz", "k"])),
            10 => format!("-{}", self.decimal()),
            11 => format!("{}e-{}", self.decimal(), self.roll(2, 9)),
            _ => format!("{}/{}", self.roll(1, 40), self.roll(41, 99)),
        }
    }

    /// A percentage.
    pub fn percent(&mut self) -> String {
        if self.roll(0, 1) == 0 { format!("{}%", self.roll(1, 100)) } else { format!("{}%", self.decimal()) }
    }

    /// `v1.2.3`, `1.2.3` or `v1.2`, at times with a suffix.
    pub fn version(&mut self) -> String {
        self.mine(|draw| {
            let (a, b, c) = (draw.roll(0, 24), draw.roll(0, 99), draw.roll(0, 30));
            match draw.roll(0, 6) {
                0 => format!("v{a}.{b}"),
                1 | 2 => format!("v{a}.{b}.{c}"),
                3 => format!("{a}.{b}.{c}-rc.{}", draw.roll(1, 9)),
                _ => format!("{a}.{b}.{c}"),
            }
        })
    }

    /// A name for an error: a code of one of many families.
    pub fn error_code(&mut self) -> String {
        self.mine(|draw| match draw.roll(0, 3) {
            0 => format!("{}Error", draw.pascal_any()),
            1 => format!("ERR_{}", draw.characters(b"ABCDEFGHIJKLMNOPRSTUVW", 6)),
            _ => format!("{}{}", draw.any(pools::ERRORS), draw.roll(100, 9999)),
        })
    }

    fn pascal_any(&mut self) -> String {
        capitalised(&self.stem()) + &capitalised(self.noun())
    }

    /// A commit hash, long or short.
    pub fn hash(&mut self) -> String {
        let length = if self.roll(0, 4) == 0 { 40 } else { self.roll(7, 12) };
        self.mine(|draw| draw.characters(b"0123456789abcdef", length))
    }

    /// A host name.
    pub fn host(&mut self) -> String {
        self.mine(|draw| match draw.roll(0, 2) {
            0 => format!("{}-{:02}", draw.noun(), draw.roll(1, 40)),
            1 => format!(
                "{}.{}.{}",
                draw.stem(),
                draw.stem(),
                draw.any(&["com", "org", "io", "net", "local", "dev"])
            ),
            _ => format!("{}.{}", draw.syllables(2, 3), draw.any(&["com", "io", "internal", "eu"])),
        })
    }

    /// A URL.
    pub fn url(&mut self) -> String {
        let (host, tail) = (self.host(), self.snake());
        match self.roll(0, 3) {
            0 => format!("https://{host}/{tail}?page={}", self.roll(1, 90)),
            1 => format!("http://{host}:{}/{tail}", self.port()),
            2 => format!("https://{host}/{}/{}/pull/{}", self.stem(), self.stem(), self.roll(1, 9999)),
            _ => format!("https://{host}/{tail}"),
        }
    }

    /// A port.
    pub fn port(&mut self) -> String {
        self.mine(|draw| draw.roll(1024, 65_535).to_string())
    }

    /// A date in one of the usual spellings.
    pub fn date(&mut self) -> String {
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        self.mine(|draw| match draw.roll(0, 2) {
            0 => format!("{} {}", draw.any(&MONTHS), draw.roll(1, 28)),
            1 => format!("{:02}.{:02}.{}", draw.roll(1, 28), draw.roll(1, 12), draw.roll(2015, 2030)),
            _ => format!("{}-{:02}-{:02}", draw.roll(2015, 2030), draw.roll(1, 12), draw.roll(1, 28)),
        })
    }

    /// A time of day.
    pub fn time(&mut self) -> String {
        self.mine(|draw| format!("{:02}:{:02}:{:02}", draw.roll(0, 23), draw.roll(0, 59), draw.roll(0, 59)))
    }

    /// A template with its slots filled. `{=a|b}` is one of these by shape, `{~a|b}` one of two opposites,
    /// `{name}` a fact of that name (see [`Draw::slot`]).
    pub fn fill(&mut self, template: &str) -> String {
        let mut text = String::with_capacity(template.len() * 2);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            text += before;
            let (slot, after) =
                after.split_once('}').expect("templates close their slots: a test fills them all");
            debug_assert!(!slot.contains('{'), "slots don't nest: {template:?}");
            match slot.as_bytes().first() {
                Some(b'=') => {
                    let options: Vec<&str> = slot[1..].split('|').collect();
                    text += self.pick(&options);
                }
                Some(b'~') => {
                    let (a, b) =
                        slot[1..].split_once('|').expect("an opposite has two sides: a test fills them all");
                    text += self.opposite(a, b);
                }
                _ => text += &self.slot(slot),
            }
            rest = after;
        }
        text + rest
    }

    /// A fact by the name that templates call it.
    fn slot(&mut self, name: &str) -> String {
        match name {
            "person" => self.person(),
            "first" => self.first(),
            "handle" => format!("@{}", self.mine(|draw| draw.syllables(2, 3))),
            "mail" => format!("{}@{}", self.mine(|draw| draw.syllables(2, 3)), self.host()),
            "city" => self.from(pools::CITIES),
            "tool" => self.tool(),
            "path" => self.path(),
            "file" => self.file(),
            "id" => self.identifier(),
            "fn" => self.snake(),
            "type" => self.pascal(),
            "var" => self.variable(),
            "flag" => format!("--{}", self.snake().replace('_', "-")),
            "ver" => self.version(),
            "int" => self.integer(),
            "dec" => self.decimal(),
            "num" => self.number(),
            "pct" => self.percent(),
            "small" => self.roll(2, 60).to_string(),
            "ms" => format!("{}{}", self.integer(), self.any(&["ms", "s", "us", " ms", " seconds"])),
            "size" => format!("{}{}", self.decimal(), self.any(&[" GB", " MB", "GB", "MB", "KiB", " GiB"])),
            "hash" => self.hash(),
            "host" => self.host(),
            "ip" => format!("10.{}.{}.{}", self.roll(0, 255), self.roll(0, 255), self.roll(1, 254)),
            "port" => self.port(),
            "url" => self.url(),
            "err" => self.error_code(),
            "str" => self.gibberish(),
            "date" => self.date(),
            "time" => self.time(),
            "issue" => format!("#{}", self.mine_if_long(|draw| draw.roll(1, 9999).to_string())),
            "w" => self.word(),
            "noun" => self.noun().to_owned(),
            "nouns" => words::plural(self.noun()),
            "verb" => self.verb().to_owned(),
            "Verb" => capitalised(self.verb()),
            "past" => words::past(self.verb()),
            "adj" => self.adjective().to_owned(),
            "np" => self.phrase(),
            "Noun" => capitalised(self.noun()),
            "scope" => self.from(pools::SCOPES),
            _ => unreachable!("templates name only known slots, {name:?} is none: a test fills them all"),
        }
    }
}

/// With its first letter in upper case.
pub fn capitalised(word: &str) -> String {
    let mut characters = word.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + characters.as_str())
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_the_two_splits_never_meet() {
        let mut seen = [std::collections::HashSet::new(), std::collections::HashSet::new()];
        for (at, split) in [Split::Train, Split::Eval].into_iter().enumerate() {
            let mut draw = Draw::new(stream("s", 1, split, 0, 0), stream("f", 1, split, 0, 0), split, false);
            for _ in 0..400 {
                for slot in ["first", "tool", "file", "fn", "type", "ver", "port", "err", "city", "str"] {
                    seen[at].insert(draw.slot(slot));
                }
            }
        }
        assert!(seen[0].len() > 1000 && seen[1].len() > 1000);
        assert_eq!(seen[0].intersection(&seen[1]).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}
