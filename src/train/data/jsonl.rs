//! JSONL files, read on demand: only the offsets of rows are in memory.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::row::Row;
use super::source::Source;
use crate::digest::Digest;
use crate::train::TrainError;

/// Rows of JSONL files in order; empty lines are skipped.
#[derive(Debug)]
pub struct Jsonl {
    files: Vec<(PathBuf, std::fs::File)>,
    rows: Vec<RowLocation>,
    digest: Digest,
}

/// The location of a row.
#[derive(Debug, Clone, Copy)]
struct RowLocation {
    offset: u64,
    bytes: u32,
    file: u32,
    line: u32,
}

impl Jsonl {
    /// Opens files and reads each once, so that every row is checked before training starts.
    ///
    /// # Errors
    /// A file that can't be read, an invalid row (file, line and key are named), no rows at all.
    pub fn open(paths: &[PathBuf]) -> Result<Self, TrainError> {
        let (mut files, mut rows, mut hasher) = (vec![], vec![], Sha256::new());
        for (number, path) in paths.iter().enumerate() {
            let file = fs_err::File::open(path).map_err(TrainError::file(path))?.into_parts().0;
            let mut reader = BufReader::new(&file);
            let (mut offset, mut line, mut bytes) = (0, 0, Vec::new());
            loop {
                bytes.clear();
                let read = reader.read_until(b'\n', &mut bytes).map_err(TrainError::file(path))?;
                if read == 0 {
                    break;
                }
                line += 1;
                hasher.update(&bytes);
                let wrong = |message: String| TrainError::Row {
                    place: format!("{}, line {line}", path.display()),
                    message,
                };
                let text = std::str::from_utf8(&bytes).map_err(|e| wrong(format!("no UTF-8: {e}")))?;
                if !text.trim().is_empty() {
                    Row::parse(text).map_err(wrong)?;
                    let size = u32::try_from(read).map_err(|_| wrong(format!("{read} bytes: too long")))?;
                    rows.push(RowLocation { offset, bytes: size, file: number as u32, line });
                }
                offset += read as u64;
            }
            files.push((path.clone(), file));
        }
        if rows.is_empty() {
            let path = paths.first().map_or(Path::new("no file"), PathBuf::as_path);
            return Err(TrainError::Row { place: path.display().to_string(), message: "no rows".into() });
        }
        Ok(Self { files, rows, digest: Digest(hasher.finalize().into()) })
    }
}

impl Source for Jsonl {
    fn row(&self, index: u64, _max_event_chars: Option<usize>) -> Result<Row, TrainError> {
        let RowLocation { offset, bytes, file, .. } = self.rows[index as usize];
        let (path, file) = &self.files[file as usize];
        let mut text = vec![0; bytes as usize];
        file.read_exact_at(&mut text, offset).map_err(TrainError::file(path))?;
        let row = String::from_utf8(text).map_err(|e| e.to_string()).and_then(|text| Row::parse(&text));
        // The row was valid when the file was opened.
        row.map_err(|message| TrainError::Row {
            place: self.place(index),
            message: format!("{message}; the file has changed since the run began"),
        })
    }

    fn rows(&self) -> Option<u64> {
        Some(self.rows.len() as u64)
    }

    fn place(&self, index: u64) -> String {
        let RowLocation { file, line, .. } = self.rows[index as usize];
        format!("{}, line {line}", self.files[file as usize].0.display())
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_where_they_lie_and_a_bad_one_names_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let open = |rows: &str| {
            crate::atomic_file::write(&path, rows.as_bytes()).unwrap();
            Jsonl::open(&[path.clone(), path.clone()]).map_err(|e| e.to_string())
        };
        let source = open("{\"text\":\"é\"}\n\n{\"text\":\"b\"}").unwrap();
        assert_eq!(source.rows(), Some(4));
        for (index, text) in ["é", "b", "é", "b"].into_iter().enumerate() {
            assert_eq!(source.row(index as u64, None).unwrap(), Row::Text(text.into()));
        }
        assert!(source.place(3).ends_with("rows.jsonl, line 3"));
        let error = open("{\"text\":\"a\"}\n{\"text\":\"\"}\n").unwrap_err();
        assert!(error.contains("rows.jsonl, line 2: text is empty"), "{error}");
        assert!(open("").unwrap_err().contains("no rows"));
        crate::atomic_file::write(&path, b"\xff\n").unwrap();
        assert!(
            Jsonl::open(std::slice::from_ref(&path)).unwrap_err().to_string().contains("line 1: no UTF-8")
        );
    }
}
