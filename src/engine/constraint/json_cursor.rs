//! Tracks the position in a JSON text: inside a string, a number or a literal, or between values,
//! and the nesting depth.

/// What the last byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Between tokens of JSON.
    Between,
    /// In a string.
    String,
    /// In a string, after a backslash.
    Escape,
    /// In a string, in `\uXXXX`: number of missing digits.
    Unicode(u8),
    /// In a number.
    Number,
    /// In `true`, `false` or `null`: number of missing letters.
    Literal(u8),
}

/// Follows a JSON text, which must be valid, byte by byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanner {
    place: Place,
    depth: usize,
    begun: bool,
}

impl Scanner {
    /// The beginning of a text.
    pub const START: Self = Self { place: Place::Between, depth: 0, begun: false };

    /// A position in the middle of a value.
    pub fn inside(place: Place) -> Self {
        Self { place, depth: 1, begun: true }
    }

    /// What the last byte belongs to.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether the text is one complete value. A number at the top level is never complete, because
    /// it may continue.
    pub fn complete(&self) -> bool {
        self.begun && self.depth == 0 && self.place == Place::Between
    }

    /// Whether the text so far is only a number.
    pub fn top_level_number(&self) -> bool {
        self.depth == 0 && self.place == Place::Number
    }

    /// Number of open brackets.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Advances by one byte.
    pub fn push(&mut self, byte: u8) {
        self.begun = true;
        self.place = match (self.place, byte) {
            (Place::String, b'"') => Place::Between,
            (Place::String, b'\\') => Place::Escape,
            (Place::Escape, b'u') => Place::Unicode(4),
            (Place::String | Place::Escape | Place::Unicode(0 | 1), _) => Place::String,
            (Place::Unicode(left), _) => Place::Unicode(left - 1),
            (Place::Literal(left), _) if left > 1 => Place::Literal(left - 1),
            (Place::Literal(_), _) => Place::Between,
            (Place::Number, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-') => Place::Number,
            (Place::Between | Place::Number, _) => self.between(byte),
        };
    }

    /// Advances by several bytes.
    pub fn push_all(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.push(byte);
        }
    }

    fn between(&mut self, byte: u8) -> Place {
        match byte {
            b'"' => return Place::String,
            b'-' | b'0'..=b'9' => return Place::Number,
            b't' | b'n' => return Place::Literal(3),
            b'f' => return Place::Literal(4),
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        Place::Between
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_completeness() {
        for (text, place, complete) in [
            ("", Place::Between, false),
            (r#"{"a":"x"#, Place::String, false),
            (r#"{"a":"x\"#, Place::Escape, false),
            (r#"{"a":"x\""#, Place::String, false),
            (r#"{"a":"\u00"#, Place::Unicode(2), false),
            (r#"{"a":"\u00e9"#, Place::String, false),
            (r#"{"a":-1.5e"#, Place::Number, false),
            (r#"{"a":tru"#, Place::Literal(1), false),
            (r#"{"a":false,"b":[null]}"#, Place::Between, true),
            (r#""}""#, Place::Between, true),
            ("true", Place::Between, true),
            ("12", Place::Number, false),
            (r#"{"a":{}"#, Place::Between, false),
        ] {
            let mut scanner = Scanner::START;
            scanner.push_all(text.as_bytes());
            assert_eq!((scanner.place(), scanner.complete()), (place, complete), "{text}");
        }
    }
}
