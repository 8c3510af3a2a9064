//! The filter `tojson` as `transformers` defines it: Python's `json.dumps(x, ensure_ascii=False,
//! indent=None, separators=None, sort_keys=False)`. Other arguments are refused.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest};
use minijinja::{Error, ErrorKind, Value};

use super::sentinel::{self, Guard};

/// JSON of a value. It is never the template's own text, so none of it is in ink.
pub(super) fn to_json(
    guard: &Guard,
    value: &Value,
    arguments: Rest<Value>,
    kwargs: &Kwargs,
) -> Result<String, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let invalid = |message: String| Error::new(ErrorKind::InvalidOperation, message);
    if arguments.len() > NAMES.len() {
        return Err(invalid(format!("tojson: {} arguments, expected at most 4", arguments.len())));
    }
    let mut given = Vec::new();
    for (at, name) in NAMES.iter().enumerate() {
        let value = match arguments.get(at) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(name)?,
        };
        given.push(value.filter(|value| !value.is_none() && !value.is_undefined()));
    }
    kwargs.assert_all_used()?;
    let is_true = |value: &Option<Value>| value.as_ref().is_some_and(Value::is_true);
    let indent = match &given[1] {
        None => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => sentinel::read(text).into_owned(),
            None => " ".repeat(usize::try_from(i64::try_from(value.clone())?.clamp(0, 1_000)).unwrap_or(0)),
        }),
    };
    let separators = match &given[2] {
        None => None,
        Some(value) => {
            let both: Vec<Value> = value.try_iter()?.collect();
            let texts: Vec<String> = both
                .iter()
                .filter_map(|one| one.as_str().map(|text| sentinel::read(text).into_owned()))
                .collect();
            let pair: Result<[String; 2], _> = texts.try_into();
            Some(pair.map_err(|_| {
                invalid(format!("tojson: separators is {value}, expected two texts, as in (',', ':')"))
            })?)
        }
    };
    let usual = [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_owned);
    let style = Style {
        ascii: is_true(&given[0]),
        sorted: is_true(&given[3]),
        indent,
        separators: separators.unwrap_or(usual),
    };
    let json = serde_json::to_value(value).map_err(|error| invalid(error.to_string()))?;
    let uncovered = |text: &str| guard.uncover(&sentinel::read(text));
    let json = guard.cover(style.dump(&json, &uncovered).into());
    Ok(json.as_str().unwrap_or_default().to_owned())
}

/// JSON of a value as `tojson` writes it without arguments.
pub fn spaced(value: &serde_json::Value) -> String {
    let separators = [", ", ": "].map(str::to_owned);
    let style = Style { ascii: false, sorted: false, indent: None, separators };
    style.dump(value, &str::to_owned)
}

/// The style of the JSON.
struct Style {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    separators: [String; 2],
}

impl Style {
    fn dump(&self, value: &serde_json::Value, read: &dyn Fn(&str) -> String) -> String {
        let mut out = String::new();
        self.value(&mut out, value, 0, read);
        out
    }

    fn value(
        &self,
        out: &mut String,
        value: &serde_json::Value,
        depth: usize,
        read: &dyn Fn(&str) -> String,
    ) {
        use serde_json::Value as Json;
        match value {
            Json::Null => out.push_str("null"),
            Json::Bool(yes) => out.push_str(if *yes { "true" } else { "false" }),
            Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => out.push_str(&python_float(float)),
                None => out.push_str(&number.to_string()),
            },
            Json::String(text) => self.string(out, &read(text)),
            Json::Array(items) if items.is_empty() => out.push_str("[]"),
            Json::Object(fields) if fields.is_empty() => out.push_str("{}"),
            Json::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.next(out, index, depth + 1);
                    self.value(out, item, depth + 1, read);
                }
                self.line(out, depth);
                out.push(']');
            }
            Json::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().map(|(key, field)| (read(key), field)).collect();
                if self.sorted {
                    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
                }
                out.push('{');
                for (index, (key, field)) in fields.into_iter().enumerate() {
                    self.next(out, index, depth + 1);
                    self.string(out, &key);
                    out.push_str(&self.separators[1]);
                    self.value(out, field, depth + 1, read);
                }
                self.line(out, depth);
                out.push('}');
            }
        }
    }

    fn next(&self, out: &mut String, index: usize, depth: usize) {
        if index > 0 {
            out.push_str(&self.separators[0]);
        }
        self.line(out, depth);
    }

    fn line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&self, out: &mut String, text: &str) {
        if !self.ascii {
            out.push_str(&serde_json::Value::from(text).to_string());
            return;
        }
        out.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{C}' => out.push_str("\\f"),
                ' '..='~' => out.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }
        out.push('"');
    }
}

/// A float as Python writes it: Rust's digits (the shortest that read back), and an exponent with a
/// sign and at least two digits.
pub(super) fn python_float(float: f64) -> String {
    let text = format!("{float:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::Environment;
    use serde_json::json;

    fn made(expression: &str, x: &serde_json::Value) -> Result<String, String> {
        let mut environment = Environment::new();
        environment.add_filter("tojson", |value: Value, arguments: Rest<Value>, kwargs: Kwargs| {
            to_json(&Guard::default(), &value, arguments, &kwargs)
        });
        let context = minijinja::context! { x => Value::from_serialize(x) };
        let rendered = environment.render_str(&format!("{{{{ {expression} }}}}"), context);
        rendered.map_err(|error| error.to_string())
    }

    #[test]
    fn json_is_what_python_writes() {
        let x =
            json!({"b": [1, 2.0, {"ü": "\u{1F600}\u{7f}\n"}], "a": {"d": null, "c": true}, "e": [], "f": {}});
        for (expression, expected) in [
            (
                "x | tojson",
                "{\"b\": [1, 2.0, {\"ü\": \"\u{1F600}\u{7f}\\n\"}], \"a\": {\"d\": null, \"c\": true}, \"e\": [], \"f\": {}}",
            ),
            ("x.a | tojson(sort_keys=true)", r#"{"c": true, "d": null}"#),
            (
                "x | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true)",
                r#"{"a":{"c":true,"d":null},"b":[1,2.0,{"\u00fc":"\ud83d\ude00\u007f\n"}],"e":[],"f":{}}"#,
            ),
            ("x.a | tojson(indent=2)", "{\n  \"d\": null,\n  \"c\": true\n}"),
            ("x.a | tojson(false, '\t', none, true)", "{\n\t\"c\": true,\n\t\"d\": null\n}"),
            ("x.a | tojson(indent=0, separators=['; ', '='])", "{\n\"d\"=null; \n\"c\"=true\n}"),
            ("x.e | tojson(indent=2)", "[]"),
            ("x.b | tojson(indent=1)", "[\n 1,\n 2.0,\n {\n  \"ü\": \"\u{1F600}\u{7f}\\n\"\n }\n]"),
        ] {
            assert_eq!(made(expression, &x).as_deref(), Ok(expected), "{expression}");
        }
    }

    #[test]
    fn what_python_would_refuse_is_refused() {
        for expression in
            ["x | tojson(sorted=true)", "x | tojson(separators=',')", "x | tojson(0, 1, none, 1, 1)"]
        {
            let refused = made(expression, &json!({}));
            assert!(refused.is_err(), "{expression}: {refused:?}");
        }
    }

    #[test]
    fn floats_have_pythons_exponents() {
        for (float, expected) in [
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (1e-4, "0.0001"),
            (0.00001, "1e-05"),
            (-2.0, "-2.0"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(python_float(float), expected);
        }
    }
}
