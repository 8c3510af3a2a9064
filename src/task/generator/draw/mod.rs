//! Where facts come from: two random streams, one for the shape of a row and one for what it says.

mod facts;
mod template;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::{Split, words};

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

    /// As [`Draw::mine`], for what both splits may have while it is short.
    fn mine_if_long(&mut self, make: impl Fn(&mut Self) -> String) -> String {
        for _ in 0..40 {
            let made = make(self);
            if made.len() < 3 || split_of(&made) == self.split {
                return made;
            }
        }
        self.roll(0, 99).to_string()
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
}

/// With its first letter in upper case.
pub fn capitalised(word: &str) -> String {
    let mut characters = word.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + characters.as_str())
}
