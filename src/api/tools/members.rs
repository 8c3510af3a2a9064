//! Reads the JSON of an object without changing it: where it ends, and its members as written.

use serde::de::IgnoredAny;

/// Finds the end of an object while its text grows.
#[derive(Debug, Clone, Default)]
pub(super) struct ObjectEnd {
    /// Number of bytes scanned.
    at: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    end: Option<usize>,
}

impl ObjectEnd {
    /// The position after the object that `text` starts with, once it is complete. Each call must
    /// pass a longer text.
    pub(super) fn find(&mut self, text: &str) -> Option<usize> {
        let bytes = text.as_bytes();
        while self.end.is_none() && self.at < bytes.len() {
            let byte = bytes[self.at];
            self.at += 1;
            if self.in_string {
                self.in_string = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.end = Some(self.at);
                    }
                }
                _ => {}
            }
        }
        self.end
    }
}

/// Keys and values of an object; values are the original text. `None` if the text isn't the JSON of
/// an object.
pub(super) fn members(text: &str) -> Option<Vec<(String, &str)>> {
    let text = text.trim();
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    let mut rest = text.strip_prefix('{')?.trim_start();
    let mut members = Vec::new();
    while rest.starts_with('"') {
        let (key, after) = rest.split_at(value_end(rest)?);
        rest = after.trim_start().strip_prefix(':')?.trim_start();
        let (value, after) = rest.split_at(value_end(rest)?);
        members.push((serde_json::from_str(key).ok()?, value.trim_end()));
        rest = after.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some(members)
}

/// The end of the value that valid JSON starts with.
fn value_end(text: &str) -> Option<usize> {
    match text.bytes().next()? {
        b'{' | b'[' => ObjectEnd::default().find(text),
        b'"' => {
            let mut escaped = false;
            text.bytes().enumerate().skip(1).find_map(|(at, byte)| {
                let ends = !escaped && byte == b'"';
                escaped = !escaped && byte == b'\\';
                ends.then_some(at + 1)
            })
        }
        _ => text.find([',', '}', ']']),
    }
}

/// JSON without white space between its tokens.
pub(super) fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|&c| {
            if in_string {
                in_string = escaped || c != '"';
                escaped = !escaped && c == '\\';
                return true;
            }
            in_string = c == '"';
            !matches!(c, ' ' | '\n' | '\r' | '\t')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_the_text_that_was_written() {
        let text = r#" {"a" : 1.50e400 , "b\n":{"}":"\"}"},"c":[ "]" ] , "d":"\\", "e":null} "#;
        let found = members(text).unwrap();
        let expected = [
            ("a", "1.50e400"),
            ("b\n", r#"{"}":"\"}"}"#),
            ("c", r#"[ "]" ]"#),
            ("d", r#""\\""#),
            ("e", "null"),
        ];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value)));
        assert_eq!(members("{}"), Some(vec![]));
        for wrong in ["", "[]", "{", r#"{"a":}"#, r#"{"a":1} x"#, r#"{"a":'b'}"#] {
            assert_eq!(members(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn white_space_goes_where_it_means_nothing() {
        assert_eq!(compact("{ \"a b\\\" \" :\n\t[1, 2 ] }"), r#"{"a b\" ":[1,2]}"#);
    }
}
