//! Reads the files of this room: one JSON object per line. Errors name file, line and key.

use std::io::BufRead;
use std::path::Path;

use serde_json::{Map, Value};

use super::schema::kind;
use crate::task::Event;
use crate::task::prompt::{Wording, messages};
use crate::text::tokenizer::Message;

/// Why a file of rows can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The file can't be read.
    #[error("{file}: {source}")]
    Io {
        /// The file, or `stdin`.
        file: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not a row.
    #[error("{file}:{line}: {message}")]
    Line {
        /// The file, or `stdin`.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A key of a row is missing or of the wrong type.
    #[error("{file}:{line}: {key}: found {found}, expected {expected}")]
    Key {
        /// The file, or `stdin`.
        file: String,
        /// Counted from 1.
        line: usize,
        /// The key.
        key: String,
        /// What is there.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// There are no rows.
    #[error("{file}: no rows")]
    Empty {
        /// The file, or `stdin`.
        file: String,
    },
}

/// A line of a file with its location.
#[derive(Debug, Clone)]
pub struct JsonRow {
    file: String,
    line: usize,
    fields: Map<String, Value>,
}

/// An answer and the event that it encodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// A string or a number, handed through.
    pub id: Value,
    /// The event with its source and type.
    pub event: Event,
    /// What the model wrote.
    pub output: String,
    /// The prompt that asked for it, if the row has it.
    pub prompt: Option<String>,
}

/// An event to send to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// A string or a number, handed through.
    pub id: Value,
    /// The event.
    pub event: Event,
    /// What the answer must contain (stress tests).
    pub must: Vec<String>,
    /// Name of the pair that this event belongs to (twins).
    pub twin: Option<String>,
}

impl Pair {
    /// Texts of the prompt's messages: the row's own, or those that `bespoke encode` sends for
    /// this event.
    pub fn prompt_texts(&self) -> Vec<String> {
        match &self.prompt {
            Some(prompt) => vec![prompt.clone()],
            None => standard_prompt(&self.event),
        }
    }
}

/// Texts of the messages that `bespoke encode` and `bespoke eval run` send.
pub fn standard_prompt(event: &Event) -> Vec<String> {
    messages(event, &Wording::standard()).into_iter().map(|Message { content, .. }| content).collect()
}

/// Reads a file of pairs.
pub fn read_pairs(path: &Path) -> Result<Vec<Pair>, RowError> {
    let row = |row: &JsonRow| {
        Ok(Pair {
            id: row.id()?,
            event: row.event()?,
            output: row.text("output")?,
            prompt: row.optional_text("prompt")?,
        })
    };
    open(path, row)
}

/// Reads a file of probes.
pub fn read_probes(path: &Path) -> Result<Vec<Probe>, RowError> {
    let row = |row: &JsonRow| {
        Ok(Probe {
            id: row.id()?,
            event: row.event()?,
            must: row.texts("must")?,
            twin: row.optional_text("twin")?,
        })
    };
    open(path, row)
}

fn open<T>(path: &Path, parse: impl Fn(&JsonRow) -> Result<T, RowError>) -> Result<Vec<T>, RowError> {
    if path == Path::new("-") {
        return read("stdin", std::io::stdin().lock(), parse);
    }
    let file = path.display().to_string();
    match fs_err::File::open(path) {
        Ok(open) => read(&file, std::io::BufReader::new(open), parse),
        // fs-err's message begins with the path as well.
        Err(error) => Err(RowError::Io { file, source: error.kind().into() }),
    }
}

/// Reads rows; empty lines are skipped, input without rows is an error.
pub fn read<T>(
    file: &str,
    text: impl BufRead,
    parse: impl Fn(&JsonRow) -> Result<T, RowError>,
) -> Result<Vec<T>, RowError> {
    let mut rows = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.map_err(|source| RowError::Io { file: file.to_owned(), source })?;
        if text.trim().is_empty() {
            continue;
        }
        let wrong = |message| RowError::Line { file: file.to_owned(), line, message };
        let fields = match serde_json::from_str(&text) {
            Ok(Value::Object(fields)) => fields,
            Ok(other) => return Err(wrong(format!("found {}, expected an object", kind(&other)))),
            Err(error) => return Err(wrong(format!("not JSON: {error}"))),
        };
        rows.push(parse(&JsonRow { file: file.to_owned(), line, fields })?);
    }
    if rows.is_empty() { Err(RowError::Empty { file: file.to_owned() }) } else { Ok(rows) }
}

impl JsonRow {
    /// The row's `id`: a string or a number.
    pub fn id(&self) -> Result<Value, RowError> {
        match self.fields.get("id") {
            Some(id @ (Value::String(_) | Value::Number(_))) => Ok(id.clone()),
            other => Err(self.wrong("id", other, "string or number")),
        }
    }

    /// A required text.
    pub fn text(&self, key: &str) -> Result<String, RowError> {
        self.optional_text(key)?.ok_or_else(|| self.wrong(key, None, "string"))
    }

    /// A text that may be absent or null.
    pub fn optional_text(&self, key: &str) -> Result<Option<String>, RowError> {
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            other => Err(self.wrong(key, other, "string")),
        }
    }

    /// A list of texts; empty when absent.
    pub fn texts(&self, key: &str) -> Result<Vec<String>, RowError> {
        match self.fields.get(key) {
            None => Ok(Vec::new()),
            Some(list) => serde_json::from_value(list.clone())
                .map_err(|_| self.wrong(key, Some(list), "array of strings")),
        }
    }

    /// `raw_input` with `source` and `type`, which default to those of `bespoke encode`.
    pub fn event(&self) -> Result<Event, RowError> {
        let or =
            |key: &str, otherwise: &str| Ok(self.optional_text(key)?.unwrap_or_else(|| otherwise.to_owned()));
        Ok(Event::new(or("source", "mcp")?, or("type", "general")?, self.text("raw_input")?))
    }

    /// An error about one of the row's keys.
    pub fn wrong(&self, key: &str, found: Option<&Value>, expected: &'static str) -> RowError {
        let found = match found {
            None => "nothing".to_owned(),
            Some(value) => kind(value).to_owned(),
        };
        RowError::Key { file: self.file.clone(), line: self.line, key: key.to_owned(), found, expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str) -> String {
        let parse = |row: &JsonRow| Ok((row.id()?, row.event()?, row.text("output")?, row.texts("must")?));
        read("pairs", text.as_bytes(), parse).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_name_file_line_and_key() {
        for (text, expected) in [
            ("", "pairs: no rows"),
            ("\n{", "pairs:2: not JSON: EOF while parsing an object at line 1 column 1"),
            ("[1]", "pairs:1: found array, expected an object"),
            ("{}", "pairs:1: id: found nothing, expected string or number"),
            (r#"{"id": null}"#, "pairs:1: id: found null, expected string or number"),
            (r#"{"id": 1}"#, "pairs:1: raw_input: found nothing, expected string"),
            (r#"{"id": 1, "raw_input": "", "type": 5}"#, "pairs:1: type: found number, expected string"),
            (r#"{"id": 1, "raw_input": "", "output": {}}"#, "pairs:1: output: found object, expected string"),
            (
                r#"{"id": 1, "raw_input": "", "output": "", "must": [1]}"#,
                "pairs:1: must: found array, expected array of strings",
            ),
        ] {
            assert_eq!(mistake(text), expected);
        }
    }
}
