//! Python's string methods and Jinja's string filters, for texts that are partly in
//! [ink](super::sentinel). They read a text without its ink, and the parts that they keep stay in
//! ink.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::sentinel;
use super::to_json::python_float;

/// Adds Python's methods and Jinja's filters to an environment.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("trim", |value: Value, chars: Option<String>| {
        strip(&text(&value), chars.as_deref(), true, true)
    });
    for name in ["upper", "lower", "capitalize", "title"] {
        environment.add_filter(name, move |value: Value| cased(&text(&value), name));
    }
    environment.add_filter("replace", |value: Value, old: Value, new: Value, count: Option<i64>| {
        replace(&text(&value), &text(&old), &text(&new), count)
    });
    environment.add_filter("indent", indent);
    for name in ["length", "count"] {
        // An undefined value has length 0, as in Jinja.
        environment.add_filter(name, |value: Value| {
            if value.is_undefined() { Ok(0) } else { minijinja::filters::length(&value) }
        });
    }
    environment.add_filter("string", |value: Value| shown(&value).unwrap_or_else(|| text(&value)));
    environment.set_formatter(|out, state, value| match shown(value) {
        Some(shown) => out.write_str(&shown).map_err(Error::from),
        None => escape_formatter(out, state, value),
    });
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, sentinel::read(&text(&message)).into_owned())
            .with_source(Raised))
    });
}

/// An error that a template raises itself, as opposed to a failure in it.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
pub(super) struct Raised;

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A list, map or float as Python's `str` shows it. `None`: minijinja shows it the same way.
fn shown(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Number => {
            let mut out = String::new();
            represent(&mut out, &serde_json::to_value(value).ok()?);
            Some(out)
        }
        _ => None,
    }
}

/// Python's `repr`.
fn represent(out: &mut String, value: &serde_json::Value) {
    use serde_json::Value as Json;
    match value {
        Json::Null => out.push_str("None"),
        Json::Bool(yes) => out.push_str(if *yes { "True" } else { "False" }),
        Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => out.push_str(&python_float(float)),
            None => out.push_str(&number.to_string()),
        },
        Json::String(text) => represent_text(out, &sentinel::read(text)),
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                represent(out, item);
            }
            out.push(']');
        }
        Json::Object(fields) => {
            out.push('{');
            for (index, (key, field)) in fields.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                represent_text(out, &sentinel::read(key));
                out.push_str(": ");
                represent(out, field);
            }
            out.push('}');
        }
    }
}

fn represent_text(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote || c == '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(string) = value.as_str() else { return unknown_method_callback(state, value, name, args) };
    let (left, right) = (name != "rstrip", name != "lstrip");
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<Value>,) = from_args(args)?;
            let chars = chars.filter(|chars| !chars.is_none()).map(|chars| text(&chars));
            Ok(strip(string, chars.as_deref(), left, right).into())
        }
        "upper" | "lower" | "capitalize" | "title" => Ok(cased(string, name).into()),
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            Ok(replace(string, old, new, count).into())
        }
        "split" | "rsplit" => {
            let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = match separator {
                None => kwargs.get::<Option<Value>>("sep")?,
                given => given,
            };
            let most = match most {
                None => kwargs.get::<Option<i64>>("maxsplit")?,
                given => given,
            };
            kwargs.assert_all_used()?;
            let separator = separator.filter(|separator| !separator.is_none()).map(|s| text(&s));
            split(string, separator.as_deref(), most, name == "rsplit").map(Value::from)
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let mut parts = split(string, Some(separator), Some(1), name == "rpartition")?;
            if let [before, after] = parts.as_slice() {
                return Ok(vec![before.clone(), separator.to_owned(), after.clone()].into());
            }
            parts.extend([String::new(), String::new()]);
            parts.rotate_right(if name == "partition" { 0 } else { 2 });
            Ok(parts.into())
        }
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            let (all, part) = (characters(string), characters(part));
            let kept = if name == "removeprefix" {
                all.get(part.len()..).filter(|_| reads(&all[..part.len()], &part))
            } else {
                let kept = all.len().checked_sub(part.len());
                kept.filter(|&kept| reads(&all[kept..], &part)).map(|kept| &all[..kept])
            };
            Ok(kept.unwrap_or(&all).iter().collect::<String>().into())
        }
        // `join` only concatenates; it reads no text.
        "join" => unknown_method_callback(state, value, name, args),
        _ => {
            let read = |value: &Value| match value.as_str() {
                Some(text) if sentinel::has_ink(text) => Value::from(sentinel::read(text)),
                _ => value.clone(),
            };
            let args: Vec<Value> = args.iter().map(read).collect();
            unknown_method_callback(state, &read(value), name, &args)
        }
    }
}

fn characters(text: &str) -> Vec<char> {
    text.chars().collect()
}

/// Whether two texts read the same, ink aside.
fn reads(one: &[char], other: &[char]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(&a, &b)| sentinel::bare(a) == sentinel::bare(b))
}

fn strip(string: &str, chars: Option<&str>, left: bool, right: bool) -> String {
    let chars = chars.map(|chars| sentinel::read(chars).into_owned());
    let goes = |c: char| {
        let c = sentinel::bare(c);
        chars.as_deref().map_or_else(|| c.is_whitespace(), |chars| chars.contains(c))
    };
    let string = if left { string.trim_start_matches(goes) } else { string };
    if right { string.trim_end_matches(goes) } else { string }.to_owned()
}

fn cased(string: &str, how: &str) -> String {
    let mut begins = true;
    let mut cased = String::new();
    for written in string.chars() {
        let c = sentinel::bare(written);
        let upper = match how {
            "upper" => true,
            "lower" => false,
            _ => begins,
        };
        begins = how == "title" && (c.is_ascii_punctuation() || c.is_whitespace());
        if upper {
            cased.extend(c.to_uppercase().map(|c| sentinel::as_written(written, c)));
        } else {
            cased.extend(c.to_lowercase().map(|c| sentinel::as_written(written, c)));
        }
    }
    cased
}

/// Where `part` occurs in `all`, from the left, without overlaps.
fn places(all: &[char], part: &[char]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 0;
    while !part.is_empty() && at + part.len() <= all.len() {
        if reads(&all[at..at + part.len()], part) {
            found.push(at);
            at += part.len();
        } else {
            at += 1;
        }
    }
    found
}

fn replace(string: &str, old: &str, new: &str, count: Option<i64>) -> String {
    let most = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    if !sentinel::has_ink(string) && !sentinel::has_ink(old) {
        return string.replacen(old, new, most);
    }
    let (all, part) = (characters(string), characters(old));
    let mut replaced = String::new();
    let mut from = 0;
    for at in places(&all, &part).into_iter().take(most) {
        replaced.extend(&all[from..at]);
        replaced.push_str(new);
        from = at + part.len();
    }
    replaced.extend(&all[from..]);
    replaced
}

fn split(
    string: &str,
    separator: Option<&str>,
    most: Option<i64>,
    from_right: bool,
) -> Result<Vec<String>, Error> {
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let all = characters(string);
    let Some(separator) = separator else { return Ok(split_white(&all, most, from_right)) };
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let part = characters(separator);
    let mut cuts = places(&all, &part);
    if from_right && most < cuts.len() {
        // Overlapping matches: from the right, other ones are found.
        let mirrored = |chars: &[char]| chars.iter().rev().copied().collect::<Vec<char>>();
        let found = places(&mirrored(&all), &mirrored(&part));
        cuts = found.into_iter().take(most).map(|at| all.len() - at - part.len()).collect();
        cuts.reverse();
    }
    cuts.truncate(most);
    let mut parts = Vec::new();
    let mut from = 0;
    for at in cuts {
        parts.push(all[from..at].iter().collect());
        from = at + part.len();
    }
    parts.push(all[from..].iter().collect());
    Ok(parts)
}

fn split_white(all: &[char], most: usize, from_right: bool) -> Vec<String> {
    let is_white = |&c: &char| sentinel::bare(c).is_whitespace();
    let mut words: Vec<std::ops::Range<usize>> = Vec::new();
    let mut at = 0;
    while let Some(start) = all[at..].iter().position(|c| !is_white(c)).map(|found| at + found) {
        at = all[start..].iter().position(is_white).map_or(all.len(), |found| start + found);
        words.push(start..at);
    }
    if words.len() > most {
        // The unsplit rest keeps the whitespace within it and at the side where splitting began.
        if from_right {
            let rest = 0..words[words.len() - most - 1].end;
            words.splice(..words.len() - most, [rest]);
        } else {
            words.truncate(most + 1);
            words[most].end = all.len();
        }
    }
    words.into_iter().map(|word| all[word].iter().collect()).collect()
}

/// Jinja's `indent(width=4, first=False, blank=False)`; the width may be a string.
fn indent(value: Value, arguments: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let given = |at: usize, name: &str| match arguments.get(at) {
        Some(value) => Ok(Some(value.clone())),
        None => kwargs.get::<Option<Value>>(name),
    };
    let width = given(0, "width")?;
    let first = given(1, "first")?.as_ref().is_some_and(Value::is_true);
    let blank = given(2, "blank")?.as_ref().is_some_and(Value::is_true);
    kwargs.assert_all_used()?;
    let width = match width {
        None => " ".repeat(4),
        Some(width) if width.kind() == ValueKind::String => text(&width),
        Some(width) => " ".repeat(usize::try_from(width)?.min(1_000)),
    };
    let mut indented = String::new();
    let mut line_begins = first;
    for (index, line) in text(&value).split_inclusive(|c| sentinel::bare(c) == '\n').enumerate() {
        let is_blank = line.chars().all(|c| sentinel::bare(c) == '\n');
        if (index > 0 || line_begins) && (blank || !is_blank || (index == 0 && first)) {
            indented.push_str(&width);
        }
        line_begins = true;
        indented.push_str(line);
    }
    Ok(indented)
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    /// Renders an expression of `x`, with `x` plain and in ink.
    fn made(expression: &str, x: &str) -> [String; 2] {
        let mut environment = Environment::new();
        add_to(&mut environment);
        [x.to_owned(), sentinel::write(x)].map(|x| {
            let template = format!("{{{{ {expression} }}}}");
            let rendered = environment.render_str(&template, context! { x }).unwrap();
            sentinel::read(&rendered).into_owned()
        })
    }

    #[test]
    fn methods_and_filters_read_what_is_written_in_ink_as_python_does() {
        for (expression, x, expected) in [
            ("x.strip()", " a b\n", "a b"),
            ("x.lstrip('\\n')", "\n a\n", " a\n"),
            ("x | trim", "\t a ", "a"),
            ("x.split('</t>')[-1]", "a</t>b</t>c", "c"),
            ("x.split('</t>', 1)[-1]", "a</t>b</t>c", "b</t>c"),
            ("x.split(maxsplit=1)[1]", " a b  c ", "b  c "),
            ("x.rsplit('-', 1)[0]", "a-b-c", "a-b"),
            ("x.rsplit(none, 1) | join('|')", " a b c ", " a b|c"),
            ("x.split() | join('|')", " a  b ", "a|b"),
            ("x.partition('-') | join('|')", "a-b-c", "a|-|b-c"),
            ("x.partition('x') | join('|')", "a", "a||"),
            ("x.rpartition('-') | join('|')", "a-b-c", "a-b|-|c"),
            ("x.rpartition('x') | join('|')", "a", "||a"),
            ("x.removeprefix('ab')", "abc", "c"),
            ("x.removesuffix('bc')", "abc", "a"),
            ("x.removeprefix('bc')", "abc", "abc"),
            ("x.startswith('ab')", "abc", "True"),
            ("x.find('c')", "abc", "2"),
            ("x.replace('b', '-', 1)", "abb", "a-b"),
            ("x | replace('b', '-')", "abb", "a--"),
            ("x | upper ~ x.lower()", "Ab", "ABab"),
            ("x | capitalize ~ x.title()", "aB cD", "Ab cdAb Cd"),
            ("x | indent", "a\n\nb", "a\n\n    b"),
            ("x | indent(2, true)", "a\nb\n", "  a\n  b\n"),
            ("x | indent(width=1, blank=true)", "a\n\nb", "a\n \n b"),
            ("x | length", "a\u{1F600}", "2"),
        ] {
            let [plain, inked] = made(expression, x);
            assert_eq!((plain.as_str(), inked.as_str()), (expected, expected), "{expression} of {x:?}");
        }
    }

    #[test]
    fn what_is_kept_keeps_its_ink() {
        let text = format!("{}a", sentinel::write("<|x|> "));
        assert_eq!(strip(&text, Some("a"), true, true), sentinel::write("<|x|> "));
        assert_eq!(cased(&text, "upper"), format!("{}A", sentinel::write("<|X|> ")));
        assert_eq!(
            replace(&text, "|", "b", None),
            format!("{0}b{1}b{2}a", sentinel::write("<"), sentinel::write("x"), sentinel::write("> "))
        );
        let parts = split(&text, Some("x"), None, false).unwrap();
        assert_eq!(parts, [sentinel::write("<|"), format!("{}a", sentinel::write("|> "))]);
    }
}
