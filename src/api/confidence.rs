//! Confidence of the fields of a JSON answer: mean and minimum of the probabilities of the tokens
//! that the model chose within the field's value. Tokens that the schema forced were not chosen; a
//! value that was forced entirely has 1.

use std::ops::Range;

use serde_json::{Map, Value, json};

use crate::engine::TokenReport;

/// The confidence of each top-level field, in the order of the answer. A token that overlaps a
/// value counts for it, even if it also contains the neighbouring key or comma. A token that
/// overlaps two values counts for both.
pub(super) fn confidence(answer: &str, tokens: &[TokenReport]) -> Value {
    let mut places = Vec::with_capacity(tokens.len());
    let mut at = 0;
    for report in tokens {
        let end = at + report.token.bytes.len();
        places.push((at..end, report));
        at = end;
    }
    // Tokens may start before the answer: dropped white space, or the end of a tag.
    let early = leading(answer, tokens);
    let mut fields = Map::new();
    for (name, value) in values(answer) {
        let value = value.start + early..value.end + early;
        let chosen: Vec<f64> = places
            .iter()
            .filter(|(place, report)| !report.forced && place.start < value.end && place.end > value.start)
            .map(|(_, report)| f64::from(report.token.logprob).exp().clamp(0.0, 1.0))
            .collect();
        let mean = if chosen.is_empty() { 1.0 } else { chosen.iter().sum::<f64>() / chosen.len() as f64 };
        let min = chosen.iter().copied().fold(1.0, f64::min);
        fields.insert(name, json!({"mean": mean, "min": min}));
    }
    Value::Object(fields)
}

/// Number of token bytes before the first byte of the answer.
fn leading(answer: &str, tokens: &[TokenReport]) -> usize {
    let bytes: Vec<u8> = tokens.iter().flat_map(|report| report.token.bytes.iter().copied()).collect();
    let width = answer.len().min(bytes.len());
    let found = bytes.windows(width.max(1)).position(|window| window == &answer.as_bytes()[..width]);
    found.unwrap_or(0)
}

/// Names and ranges of the top-level values of an object, empty if the text is no object. An object
/// that is incomplete yields the values it has.
fn values(text: &str) -> Vec<(String, Range<usize>)> {
    let mut found = Vec::new();
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    scanner.space();
    if !scanner.eat(b'{') {
        return found;
    }
    loop {
        scanner.space();
        let key = scanner.at;
        if !scanner.string() {
            return found;
        }
        let Ok(name) = serde_json::from_str::<String>(&text[key..scanner.at]) else { return found };
        scanner.space();
        if !scanner.eat(b':') {
            return found;
        }
        scanner.space();
        let start = scanner.at;
        scanner.value();
        if scanner.at == start {
            return found;
        }
        found.push((name, start..scanner.at));
        scanner.space();
        if !scanner.eat(b',') {
            return found;
        }
    }
}

/// Scans text that is known to be JSON, or a prefix of it.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn eat(&mut self, byte: u8) -> bool {
        let there = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(there);
        there
    }

    fn space(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    /// Skips a string and returns whether there was one. An unfinished string ends with the text.
    fn string(&mut self) -> bool {
        if !self.eat(b'"') {
            return false;
        }
        while let Some(&byte) = self.bytes.get(self.at) {
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                break;
            }
        }
        self.at = self.at.min(self.bytes.len());
        true
    }

    /// Skips a value of any kind, up to the comma or bracket after it.
    fn value(&mut self) {
        let mut depth = 0usize;
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => {
                    self.string();
                    if depth == 0 {
                        return;
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' | b',' | b' ' | b'\n' | b'\r' | b'\t' if depth == 0 => return,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::TokenLikelihood;

    #[test]
    fn values_are_found_whatever_they_are() {
        for (text, expected) in [
            (r#"{"a":1,"b":"x"}"#, vec![("a", "1"), ("b", r#""x""#)]),
            (
                r#" { "a" : [1, {"b": "]}"}] , "c" : -1.5e3 } "#,
                vec![("a", r#"[1, {"b": "]}"}]"#), ("c", "-1.5e3")],
            ),
            (r#"{"q\"":"a\\","e":"\"}"}"#, vec![("q\"", r#""a\\""#), ("e", r#""\"}""#)]),
            (
                r#"{"t":true,"n":null,"o":{},"l":[]}"#,
                vec![("t", "true"), ("n", "null"), ("o", "{}"), ("l", "[]")],
            ),
            (r#"{"a":"cut of"#, vec![("a", r#""cut of"#)]),
            (r#"{"a":1,"b":"#, vec![("a", "1")]),
            (r#"{"a":1,"b"#, vec![("a", "1")]),
            (r#"{"€":"ü"}"#, vec![("€", "\"ü\"")]),
            ("{}", vec![]),
            ("[1]", vec![]),
            ("", vec![]),
            ("text", vec![]),
        ] {
            let found = values(text);
            let found: Vec<(&str, &str)> =
                found.iter().map(|(name, place)| (name.as_str(), &text[place.clone()])).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    /// Takes (text, probability) pairs; a probability of 1 marks a forced token.
    fn of(tokens: &[(&str, f32)], answer: &str) -> Value {
        let report = |&(text, probability): &(&str, f32)| {
            let bytes = text.as_bytes().to_vec();
            let forced = (probability - 1.0).abs() < f32::EPSILON;
            // The likelihood reported for a forced token must not matter.
            let logprob = if forced { -3.0 } else { probability.ln() };
            TokenReport { token: TokenLikelihood { id: 0, bytes, logprob }, forced, top: vec![] }
        };
        let mut json = confidence(answer, &tokens.iter().map(report).collect::<Vec<_>>());
        for field in json.as_object_mut().unwrap().values_mut() {
            for number in field.as_object_mut().unwrap().values_mut() {
                *number = json!((number.as_f64().unwrap() * 1e3).round() / 1e3);
            }
        }
        json
    }

    #[test]
    fn only_chosen_tokens_within_a_value_count() {
        let tokens = [
            (r#"{"gist":""#, 1.0),
            ("disk", 0.5),
            (" full", 0.25),
            (r#"","n":"#, 1.0),
            ("7", 0.8),
            ("}", 1.0),
        ];
        let expected = json!({"gist": {"mean": 0.375, "min": 0.25}, "n": {"mean": 0.8, "min": 0.8}});
        assert_eq!(of(&tokens, r#"{"gist":"disk full","n":7}"#), expected);
    }

    #[test]
    fn a_dictated_value_has_1_and_a_straddling_token_counts() {
        let tokens = [(r#"{"kind":"memory","a":"#, 1.0), ("\"x\",", 0.5), ("\"b\":\"y", 0.2), ("\"}", 0.1)];
        let expected = json!({
            "kind": {"mean": 1.0, "min": 1.0}, "a": {"mean": 0.5, "min": 0.5}, "b": {"mean": 0.15, "min": 0.1}
        });
        assert_eq!(of(&tokens, r#"{"kind":"memory","a":"x","b":"y"}"#), expected);
    }

    #[test]
    fn tokens_that_begin_before_the_answer_shift_nothing() {
        let tokens = [("\n{", 0.9), (r#""a":"#, 1.0), ("5", 0.5), ("}", 0.7)];
        assert_eq!(of(&tokens, r#"{"a":5}"#), json!({"a": {"mean": 0.5, "min": 0.5}}));
    }

    #[test]
    fn what_is_no_object_has_no_fields() {
        assert_eq!(of(&[("[1]", 0.5)], "[1]"), json!({}));
        assert_eq!(confidence("", &[]), json!({}));
    }
}
