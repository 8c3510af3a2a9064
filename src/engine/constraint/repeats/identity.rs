//! Determines when two items of a list are the same: as JSON Schema's `uniqueItems` defines it, or
//! by the texts that name them.

use std::collections::BTreeMap;

use serde_json::Value;

/// The rule by which two items of a list are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// They are equal as JSON Schema defines it: numbers by value, objects regardless of the order
    /// of their members.
    Equal,
    /// They have the same name: the item itself, or these members of it, in order. Case and
    /// surrounding whitespace are ignored. Items without such texts are compared as with
    /// [`Rule::Equal`].
    Named(Vec<String>),
}

impl Rule {
    /// A key that two items share if and only if they are the same.
    pub fn of_whole(&self, item: &str) -> Option<String> {
        if let Self::Named(members) = self
            && let Ok(value) = serde_json::from_str(item)
            && let Some(name) = name(members, &value)
        {
            return Some(name);
        }
        canonical(item)
    }

    /// The key of an object of which only the first members are known, if these suffice.
    pub fn of_part(&self, members: &str) -> Option<String> {
        let Self::Named(names) = self else { return None };
        let value = serde_json::from_str(&format!("{members}}}")).ok()?;
        name(names, &value)
    }
}

fn name(members: &[String], value: &Value) -> Option<String> {
    if members.is_empty() {
        return value.as_str().map(folded);
    }
    let parts: Option<Vec<String>> =
        members.iter().map(|member| value.get(member)?.as_str().map(folded)).collect();
    parts.map(|parts| Value::from(parts).to_string())
}

fn folded(text: &str) -> String {
    text.trim().to_lowercase()
}

/// A canonical text that all JSON texts of equal values share; `None` for invalid JSON. Whole
/// numbers are compared by their digits, however large they are, and others as doubles, which is
/// how they are read.
pub fn canonical(json: &str) -> Option<String> {
    let mut reader = Reader { json, at: 0 };
    let text = reader.value()?;
    reader.space();
    (reader.at == json.len()).then_some(text)
}

struct Reader<'a> {
    json: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Takes the next byte, after whitespace, if it is this one.
    fn eat(&mut self, byte: u8) -> bool {
        self.space();
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Takes bytes while `of` holds.
    fn run(&mut self, of: impl Fn(u8) -> bool) -> &str {
        let from = self.at;
        while self.peek().is_some_and(&of) {
            self.at += 1;
        }
        &self.json[from..self.at]
    }

    fn value(&mut self) -> Option<String> {
        self.space();
        match self.peek()? {
            b'"' => self.string(),
            b'[' => self.array(),
            b'{' => self.object(),
            b'a'..=b'z' => Some(self.run(|byte| byte.is_ascii_lowercase()).to_owned()),
            _ => number(self.run(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))),
        }
    }

    fn string(&mut self) -> Option<String> {
        let from = self.at;
        self.at += 1;
        loop {
            match self.peek()? {
                b'\\' => self.at += 2,
                b'"' => break,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        let text: String = serde_json::from_str(self.json.get(from..self.at)?).ok()?;
        Some(Value::from(text).to_string())
    }

    fn array(&mut self) -> Option<String> {
        self.at += 1;
        let mut items = Vec::new();
        if !self.eat(b']') {
            loop {
                items.push(self.value()?);
                if self.eat(b']') {
                    break;
                }
                self.eat(b',').then_some(())?;
            }
        }
        Some(format!("[{}]", items.join(",")))
    }

    fn object(&mut self) -> Option<String> {
        self.at += 1;
        let mut members = BTreeMap::new();
        if !self.eat(b'}') {
            loop {
                self.space();
                let key = self.string()?;
                self.eat(b':').then_some(())?;
                // If a name occurs twice, the last member counts, as for most readers.
                members.insert(key, self.value()?);
                if self.eat(b'}') {
                    break;
                }
                self.eat(b',').then_some(())?;
            }
        }
        let members: Vec<String> = members.iter().map(|(key, value)| format!("{key}:{value}")).collect();
        Some(format!("{{{}}}", members.join(",")))
    }
}

/// A canonical text for all numbers that are equal, or equal once they are read.
fn number(text: &str) -> Option<String> {
    let exact = digits(text)?;
    if !exact.contains("e-") {
        return Some(exact);
    }
    match text.parse::<f64>() {
        Ok(double) => digits(&format!("{double:e}")),
        Err(_) => Some(exact),
    }
}

/// Sign, digits and exponent of a number, with no zeros at either end of the digits: `12.50` is
/// `125e-1`.
fn digits(text: &str) -> Option<String> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (text, 0),
    };
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    let dropped = digits.len() - significant.len();
    let significant = significant.trim_start_matches('0');
    if digits.is_empty() || significant.is_empty() {
        return (!digits.is_empty()).then(|| "0".to_owned());
    }
    let exponent = i128::from(exponent) + dropped as i128 - fraction.len() as i128;
    Some(format!("{sign}{significant}e{exponent}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_one_text_and_others_another() {
        for (one, other) in [
            ("1", "1.0"),
            ("1", "10e-1"),
            ("-0", "0.0e9"),
            ("100", "1E+2"),
            ("123456789012345678901234567890", "123456789012345678901234567890.000"),
            ("0.1", "0.1000000000000000055"),
            ("1.00000000000000000001", "1"),
            ("1e-400", "-0.0"),
            (r#""\u0041\n""#, "\"A\\u000a\""),
            (r#"{"a":1,"b":[2,{}]}"#, r#"{ "b" : [2.0, {}], "a" : 1e0 }"#),
            ("null", " null "),
        ] {
            assert_eq!(canonical(one).unwrap(), canonical(other).unwrap(), "{one} {other}");
        }
        let different = [
            "1",
            "-1",
            "10",
            "1.5",
            "true",
            "false",
            "null",
            "\"1\"",
            "\"true\"",
            "[]",
            "{}",
            "[1]",
            "[[1]]",
            "[1,2]",
            "[2,1]",
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"A":1}"#,
            r#""a""#,
            r#""A""#,
            r#"" a""#,
            "9007199254740993",
            "9007199254740992",
            "1e400",
            "1e401",
        ];
        for (index, one) in different.iter().enumerate() {
            for other in &different[index + 1..] {
                assert_ne!(canonical(one).unwrap(), canonical(other).unwrap(), "{one} {other}");
            }
        }
        for broken in ["", "[1", "{\"a\"}", "\"", "1 2", "."] {
            assert_eq!(canonical(broken), None, "{broken}");
        }
    }

    #[test]
    fn names_are_compared_without_case_and_white_space() {
        let plain = Rule::Named(vec![]);
        assert_eq!(plain.of_whole(r#"" Disk Full""#), plain.of_whole("\"disk full\\n\""));
        assert_ne!(plain.of_whole("\"disk\""), plain.of_whole("\"disks\""));
        let action = Rule::Named(vec!["verb".into(), "object".into()]);
        let same = r#"{"verb":"Fix","object":"lock","details":"x"}"#;
        assert_eq!(action.of_whole(same), action.of_part(r#"{"verb":"fix ","object":"LOCK""#));
        assert_eq!(action.of_part(r#"{"verb":"fix""#), None, "the object isn't known yet");
        assert_ne!(
            action.of_whole(r#"{"verb":"a","object":"b c"}"#),
            action.of_whole(r#"{"verb":"a b","object":"c"}"#)
        );
        // An item without a name is compared as a whole.
        assert_eq!(action.of_whole(r#"{"n":1}"#), Some(r#"{"n":1e0}"#.to_owned()));
        assert_eq!(plain.of_whole("1.0"), Some("1e0".to_owned()));
    }
}
