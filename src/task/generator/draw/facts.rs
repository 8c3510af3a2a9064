//! Facts of each kind: names, identifiers, paths, numbers, addresses, dates.

use super::{Draw, capitalised};
use crate::task::generator::pools;

impl Draw {
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
