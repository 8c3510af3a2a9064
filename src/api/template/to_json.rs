//! The filter `tojson`, as `transformers` has it: Python's separators, the order of the keys kept, nothing escaped for HTML.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::veil::Veil;

/// JSON of a value. With a veil the whole of it is hidden: JSON is never the template's own text.
pub(super) fn to_json(
    veil: Option<&Veil>,
    value: &Value,
    indent: Option<usize>,
    kwargs: &Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        None => kwargs.get::<Option<usize>>("indent")?,
        given => given,
    };
    let failed = |error: serde_json::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if let Some(veil) = veil {
        veil.reveal(&mut json);
    }
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            json.serialize(&mut Serializer::with_formatter(
                &mut bytes,
                PrettyFormatter::with_indent(indent.as_bytes()),
            ))
        }
        None => json.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)),
    };
    written.map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(veil.map_or_else(|| text.clone(), |veil| veil.hide(&text, false)))
}

/// JSON on one line with a space behind each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// JSON of a value as [`to_json`] writes it.
pub(in crate::api) fn spaced(value: &serde_json::Value) -> String {
    let mut bytes = Vec::new();
    match value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => value.to_string(),
    }
}
