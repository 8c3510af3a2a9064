//! Files of examples: one JSON object per line,
//! `{"id", "kind", "split", "event": {..}, "messages": [..]}`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::generator::{Example, Split};
use crate::text::tokenizer::Message;

/// A line of a dataset file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Unique in its file.
    pub id: String,
    /// Name of the kind of event.
    pub kind: String,
    /// Its half of the facts.
    pub split: Split,
    /// The id of its opposite twin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin: Option<String>,
    /// The event to encode.
    pub event: Event,
    /// The system, user and assistant messages.
    pub messages: Vec<Message>,
}

/// Why a dataset can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not a record.
    #[error("{path}:{line}: {row}: {message}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The row's id, as far as it can be read.
        row: String,
        /// What is wrong, with the key.
        message: String,
    },
}

impl Record {
    /// The record of a generated row.
    pub fn new(row: Example, split: Split) -> Self {
        let Example { id, kind, twin, event, messages, .. } = row;
        Self { id, kind: kind.to_owned(), split, twin, event, messages }
    }

    /// The answer that is to be learned, if the record ends with one.
    pub fn answer(&self) -> Option<&str> {
        self.messages
            .last()
            .filter(|message| message.role == "assistant")
            .map(|message| message.content.as_str())
    }
}

/// Writes a record as one line.
pub fn write_record(to: &mut impl Write, record: &Record) -> std::io::Result<()> {
    serde_json::to_writer(&mut *to, record)?;
    to.write_all(b"\n")
}

/// Reads a dataset file line by line; empty lines are skipped.
pub fn read(path: &Path) -> Result<impl Iterator<Item = Result<Record, DatasetError>>, DatasetError> {
    let io = |source| DatasetError::Io { path: path.to_owned(), source };
    let file = fs_err::File::open(path).map_err(io)?;
    let path = path.to_owned();
    Ok(BufReader::new(file).lines().enumerate().filter_map(move |(at, line)| match line {
        Ok(line) if line.trim().is_empty() => None,
        Ok(line) => Some(parse(&line, &path, at + 1)),
        Err(source) => Some(Err(DatasetError::Io { path: path.clone(), source })),
    }))
}

fn parse(line: &str, path: &Path, number: usize) -> Result<Record, DatasetError> {
    let wrong = |message: String| {
        let id = serde_json::from_str::<serde_json::Value>(line)
            .ok()
            .and_then(|row| Some(row.get("id")?.as_str()?.to_owned()));
        let row = id.map_or_else(|| "row without an id".to_owned(), |id| format!("row {id}"));
        DatasetError::Row { path: path.to_owned(), line: number, row, message }
    };
    let record: Record = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
    if record.answer().is_none() {
        return Err(wrong("messages: the last one must be the assistant's".to_owned()));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::generator::Generator;

    #[test]
    fn records_come_back_and_errors_name_line_row_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let generator = Generator::new(1, Split::Train);
        let records: Vec<Record> = (0..13).map(|at| Record::new(generator.row(at), Split::Train)).collect();
        let mut bytes = Vec::new();
        for record in &records {
            write_record(&mut bytes, record).unwrap();
        }
        crate::atomic_file::write(&path, &bytes).unwrap();
        assert_eq!(read(&path).unwrap().collect::<Result<Vec<_>, _>>().unwrap(), records);

        bytes.extend_from_slice(b"\n{\"id\": \"odd\", \"kind\": 3}\n");
        crate::atomic_file::write(&path, &bytes).unwrap();
        let error = read(&path).unwrap().find_map(Result::err).unwrap().to_string();
        assert!(error.contains("rows.jsonl:15: row odd:") && error.contains("string"), "{error}");
    }
}
