//! Limits the share of the token budget that one value may take. A string or array leaves half of
//! the tokens that were left at its beginning to the values that must follow it. A value that
//! nothing has to follow may take everything.
//!
//! Worth its code where tokens are short: of 80 tickets in 128 tokens, 6 have an empty description
//! with it and 57 without; of 80 encodings, 0 and 58 have an empty narrative. The price: at 512
//! tokens, 4 of 40 encodings are cut that would have ended in time. See docs/benchmarks.md.

use super::json_cursor::{Place, Scanner};

/// An open string, array or object.
#[derive(Debug, Clone, Copy)]
struct Open {
    kind: Kind,
    /// Tokens that were left when it began.
    left: usize,
    /// Whether something has to follow it, if that was computed.
    followed: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    String,
    Array,
    Object,
}

/// What must come next, so that later values get their share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// The end of the string, as a token that consists only of the quotation mark.
    Quote,
    /// The end of the array.
    Bracket,
    /// The end of the number: a byte that follows it.
    Number,
}

impl Due {
    /// Whether a token is exactly what is due.
    pub fn is(self, token: &[u8]) -> bool {
        match self {
            Self::Quote => token.len() == 1 && self.begins(token),
            Self::Bracket | Self::Number => self.begins(token),
        }
    }

    /// Whether a token ends the value, alone or together with what follows.
    pub fn begins(self, token: &[u8]) -> bool {
        let ends: &[u8] = match self {
            Self::Quote => b"\"",
            Self::Bracket => b"]",
            Self::Number => b",]}",
        };
        token.first().is_some_and(|byte| ends.contains(byte))
    }
}

/// Follows an answer and tracks the shares of its open values.
#[derive(Debug, Clone)]
pub struct Shares {
    left: usize,
    open: Vec<Open>,
}

impl Shares {
    /// Shares of an answer with at most `budget` tokens.
    pub fn new(budget: usize) -> Self {
        Self { left: budget, open: Vec::new() }
    }

    /// Accepts a token; `scanner` must have seen everything before it.
    pub fn accept(&mut self, scanner: &mut Scanner, token: &[u8]) {
        for &byte in token {
            self.push(scanner, byte);
        }
        self.left = self.left.saturating_sub(1);
    }

    fn push(&mut self, scanner: &mut Scanner, byte: u8) {
        let before = scanner.place();
        scanner.push(byte);
        let kind = match (before, scanner.place(), byte) {
            (Place::Between | Place::Number, Place::String, _) => Kind::String,
            (Place::Between | Place::Number, Place::Between, b'[') => Kind::Array,
            (Place::Between | Place::Number, Place::Between, b'{') => Kind::Object,
            (Place::String, Place::Between, _)
            | (Place::Between | Place::Number, Place::Between, b']' | b'}') => {
                self.open.pop();
                return;
            }
            _ => return,
        };
        self.open.push(Open { kind, left: self.left, followed: None });
    }

    /// What is due if an open string or array has used its share and something has to follow it.
    /// `closing` computes bytes that close the answer, and is called only when the result matters.
    pub fn due<E>(
        &mut self,
        scanner: Scanner,
        closing: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Option<Due>, E> {
        let due = match (scanner.place(), self.open.last()) {
            (Place::String, _) => Due::Quote,
            (Place::Between, Some(Open { kind: Kind::Array, .. })) => Due::Bracket,
            _ => return Ok(None),
        };
        let left = self.left;
        let used = |open: &Open| open.kind != Kind::Object && left < open.left.div_ceil(2);
        if self.open.iter().any(|open| used(open) && open.followed.is_none()) {
            self.find_followed(scanner, &closing()?);
        }
        Ok(self.open.iter().any(|open| used(open) && open.followed == Some(true)).then_some(due))
    }

    /// Determines which open values something has to follow.
    fn find_followed(&mut self, mut scanner: Scanner, closing: &[u8]) {
        let mut end = self.clone();
        let mut rest = closing.iter();
        for at in (0..self.open.len()).rev() {
            while end.open.len() > at
                && let Some(&byte) = rest.next()
            {
                end.push(&mut scanner, byte);
            }
            let followed = rest.as_slice().iter().any(|byte| !matches!(byte, b']' | b'}'));
            self.open[at].followed = Some(followed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is due after tokens of one byte each, and how often the closing was computed.
    fn due(budget: usize, text: &str, closing: &str) -> (Option<Due>, usize) {
        let (mut shares, mut scanner) = (Shares::new(budget), Scanner::START);
        for byte in text.bytes() {
            shares.accept(&mut scanner, &[byte]);
        }
        let mut asked = 0;
        let due = shares.due(scanner, || {
            asked += 1;
            Ok::<_, ()>(closing.as_bytes().to_vec())
        });
        (due.unwrap(), asked)
    }

    #[test]
    fn a_value_that_others_follow_gets_half_of_what_is_left() {
        for (budget, text, closing, expected) in [
            // 15 of 20 tokens are left when the string begins.
            (20, r#"{"a":"xxxxxx"#, r#"","b":""}"#, None),
            (20, r#"{"a":"xxxxxxx"#, r#"","b":""}"#, Some(Due::Quote)),
            (20, r#"{"a":"xxxxxxxxxxx"#, r#""}"#, None),
            (20, r#"{"a":"xxxxxx\"#, r#"n","b":""}"#, None),
            (30, r#"{"a":["xx","xx","x""#, r#"],"b":""}"#, Some(Due::Bracket)),
            (30, r#"{"a":["xx","xx","x"#, r#""],"b":""}"#, Some(Due::Quote)),
            (30, r#"{"a":["xx","xx","x"#, r#""]}"#, None),
            (30, r#"{"a":[11,22,333,44"#, r#"],"b":""}"#, None),
            (30, r#"{"a":[11,22,333,44,"#, r#"1],"b":""}"#, Some(Due::Bracket)),
            // Only open values count.
            (20, r#"{"a":"xxxxxxx","b":"#, r#""","c":""}"#, None),
            (20, r#"{"a":{"b":"","c":""#, r#""},"d":""}"#, None),
            (40, r#"{"a":["x"],"b":{"c":"xxxxxxxxxxxxxx"#, r#""},"d":""}"#, Some(Due::Quote)),
            (40, r#"{"a":["x"],"b":{"c":"xxxxxxxxxxxxxx"#, r#""}}"#, None),
        ] {
            assert_eq!(due(budget, text, closing).0, expected, "{text} of {budget}");
        }
    }

    #[test]
    fn the_way_to_the_end_is_only_looked_for_when_a_share_is_used_up() {
        assert_eq!(due(100, r#"{"a":"xxxxxx"#, ""), (None, 0));
        let (mut shares, mut scanner) = (Shares::new(20), Scanner::START);
        shares.accept(&mut scanner, br#"{"a":""#);
        let mut asked = 0;
        for _ in 0..15 {
            shares.accept(&mut scanner, b"x");
            let closing = || {
                asked += 1;
                Ok::<_, ()>(b"\"}".to_vec())
            };
            assert_eq!(shares.due(scanner, closing), Ok(None));
        }
        assert_eq!(asked, 1);
    }
}
