//! Numbers with many digits or large exponents. serde_json reads some of them as the double next to
//! the right one. And JSON allows any number of digits, but a reader has 64 bits: a value that an
//! answer must have (`const`, `enum`) is refused rather than changed.

use std::fmt::Write;

use serde_json::{Number, Value};

/// Significant digits that every double preserves.
const KEPT: usize = 15;
/// Fields that contain schemas.
const FIELDS: [&str; 3] = ["response_format", "json_schema", "tools"];

/// One step of a path.
enum Step {
    Key(String),
    Index(usize),
}

/// Corrects the doubles that were read from a body, which must be valid JSON. Returns the first
/// listed value that can't be represented as written: its path and its text.
pub(super) fn put_right(body: &[u8], read: &mut Value) -> Option<(String, String)> {
    // Fast path: most bodies contain no such number.
    let long = body.split(|byte| !byte.is_ascii_digit() && *byte != b'.').any(|run| run.len() > KEPT);
    if !long && !body.windows(2).any(|pair| pair[0].is_ascii_digit() && matches!(pair[1], b'e' | b'E')) {
        return None;
    }
    let (mut steps, mut at, mut at_key) = (Vec::<Step>::new(), 0, false);
    while let Some(&byte) = body.get(at) {
        let mut next = at + 1;
        match byte {
            b'{' => {
                steps.push(Step::Key(String::new()));
                at_key = true;
            }
            b'[' => steps.push(Step::Index(0)),
            b'}' | b']' => {
                steps.pop();
                at_key = false;
            }
            b',' => match steps.last_mut() {
                Some(Step::Index(index)) => *index += 1,
                _ => at_key = true,
            },
            b':' => at_key = false,
            b'"' => {
                while body.get(next).is_some_and(|&byte| byte != b'"') {
                    next += if body[next] == b'\\' { 2 } else { 1 };
                }
                next += 1;
                if let (true, Some(Step::Key(key))) = (at_key, steps.last_mut()) {
                    *key = serde_json::from_slice(body.get(at..next)?).ok()?;
                }
            }
            b'-' | b'0'..=b'9' => {
                let part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                next = at + body[at..].iter().take_while(|byte| part(byte)).count();
                let number = std::str::from_utf8(&body[at..next]).ok()?;
                let written = normal(number);
                if (written.0.len() > KEPT || number.contains(['e', 'E']))
                    && let Some(Value::Number(read)) = value_at(read, &steps)
                    && let (Some(found), Ok(right)) = (read.as_f64(), number.parse::<f64>())
                    // If a key occurs twice, only its last value was kept.
                    && (found - right).abs() <= right.abs() * 1e-15
                {
                    if let Some(right) = Number::from_f64(right).filter(|_| read.is_f64()) {
                        *read = right;
                    }
                    if is_listed(&steps) && normal(&read.to_string()) != written {
                        return Some((path(&steps), number.to_owned()));
                    }
                }
            }
            _ => {}
        }
        at = next;
    }
    None
}

/// Whether this is a value that a schema lists.
fn is_listed(steps: &[Step]) -> bool {
    let key = |step: &Step, keys: &[&str]| matches!(step, Step::Key(key) if keys.contains(&key.as_str()));
    steps.first().is_some_and(|first| key(first, &FIELDS))
        && steps.iter().any(|step| key(step, &["const", "enum"]))
}

fn value_at<'v>(value: &'v mut Value, steps: &[Step]) -> Option<&'v mut Value> {
    steps.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    })
}

/// Significant digits, and the exponent of the first digit.
fn normal(number: &str) -> (String, i64) {
    let number = number.trim_start_matches('-');
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let zeros = digits.len() - digits.trim_start_matches('0').len();
    let power = whole.len() as i64 - zeros as i64 + exponent.parse::<i64>().unwrap_or(0);
    (digits.trim_matches('0').to_owned(), power)
}

fn path(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => path.extend([".", key]),
            Step::Index(index) => drop(write!(path, "[{index}]")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_read_exactly() {
        // serde_json reads the first as ...657e29, the second as ...50000000000004e28.
        for number in [
            "-2.6201563222627654e+29",
            "-4.345e28",
            "0.30000000000000004",
            "9007199254740993.5",
            "2.2250738585072014e-308",
        ] {
            let body = format!(r#"{{"a": [0, {{"response_format": {number}}}], "enum": "{number}"}}"#);
            let mut read: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(put_right(body.as_bytes(), &mut read), None);
            assert_eq!(read["a"][1]["response_format"].as_f64(), number.parse().ok(), "{number}");
            let listed = format!(r#"{{"tools": [{{"const": {number}}}]}}"#);
            let mut read: Value = serde_json::from_str(&listed).unwrap();
            let held = number != "9007199254740993.5";
            assert_eq!(put_right(listed.as_bytes(), &mut read).is_none(), held, "{number}");
            let twice = format!(r#"{{"a": {number}, "a": 0.5}}"#);
            let mut read: Value = serde_json::from_str(&twice).unwrap();
            assert_eq!((put_right(twice.as_bytes(), &mut read), &read["a"]), (None, &0.5.into()));
        }
    }

    #[test]
    fn listed_numbers_that_no_reader_holds_are_found() {
        let body = |schema: &str| {
            format!(
                r#"{{"messages": [{{"content": "1234567890123456789012 \" {{"}}], "n": 1, "response_format": {{"schema": {schema}}}}}"#
            )
        };
        for (schema, expected) in [
            (
                r#"{"const": 12345678901234567890123}"#,
                Some(("response_format.schema.const", "12345678901234567890123")),
            ),
            (
                r#"{"enum": [1, {"a": [0.12345678901234567891]}]}"#,
                Some(("response_format.schema.enum[1].a[0]", "0.12345678901234567891")),
            ),
            (
                r#"{"enum": ["x,]", -18446744073709551616]}"#,
                Some(("response_format.schema.enum[1]", "-18446744073709551616")),
            ),
            // Held exactly, or another way to write what is.
            (r#"{"const": 18446744073709551615}"#, None),
            (r#"{"const": -9223372036854775808}"#, None),
            (
                r#"{"enum": [1.10, 100000000000000000000000, 0.1000000000000000000, 3.141592653589793, 1.7976931348623157e308]}"#,
                None,
            ),
            // No value that must come out.
            (r#"{"maximum": 12345678901234567890123, "default": 12345678901234567890123}"#, None),
            (r#"{"const": "12345678901234567890123"}"#, None),
        ] {
            let body = body(schema);
            let found = put_right(body.as_bytes(), &mut serde_json::from_str(&body).unwrap());
            let found = found.as_ref().map(|(path, number)| (path.as_str(), number.as_str()));
            assert_eq!(found, expected, "{schema}");
        }
        let elsewhere = r#"{"seed": 12345678901234567890123, "enum": [12345678901234567890123]}"#;
        assert_eq!(put_right(elsewhere.as_bytes(), &mut serde_json::from_str(elsewhere).unwrap()), None);
    }
}
