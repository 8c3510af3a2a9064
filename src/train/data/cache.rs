//! Cached tokenised rows in files named by the hash of their input, so that a file is tokenised
//! once.
//!
//! Format, little-endian: 8 bytes magic, u64 rows, rows + 1 u64 offsets (in tokens), rows u32
//! answer starts, u32 ids, and the SHA-256 of all that. A file with a wrong hash is rebuilt.

use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::chat::{Chat, Sample};
use super::source::Source;
use crate::atomic_file::Staged;
use crate::digest::Digest;
use crate::train::TrainError;

const MAGIC: &[u8; 8] = b"bsptok01";
const HASH_BYTES: u64 = 32;

/// Tokenised rows on disk; their offsets are in memory.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    /// Whether it was damaged when it was opened.
    remade: bool,
    file: std::fs::File,
    offsets: Vec<u64>,
    answers: Vec<u32>,
}

impl TokenFile {
    /// Opens the file of a source, building it if it is missing or damaged. `identity` stands for
    /// everything but the rows that determines the tokens.
    ///
    /// # Errors
    /// A row that can't be tokenised (its place is named); I/O errors.
    pub fn of(
        source: &dyn Source,
        rows: u64,
        digest: Digest,
        chat: &Chat,
        folder: &Path,
    ) -> Result<Self, TrainError> {
        let mut key = Sha256::new();
        key.update(MAGIC);
        key.update(digest.0);
        key.update(chat.identity()?);
        let path = folder.join(format!("{}.tokens", Digest(key.finalize().into())));
        let mut remade = false;
        if path.exists() {
            if let Some(found) = Self::open(&path)? {
                return Ok(found);
            }
            remade = true;
        }
        write(source, rows, chat, &path)?;
        let damaged = || TrainError::Row { place: path.display().to_string(), message: DAMAGED.into() };
        let made = Self::open(&path)?.ok_or_else(damaged)?;
        Ok(Self { remade, ..made })
    }

    /// Opens a file; `None` if it is damaged.
    fn open(path: &Path) -> Result<Option<Self>, TrainError> {
        let io = || TrainError::file(path);
        let file = fs_err::File::open(path).map_err(io())?.into_parts().0;
        let length = file.metadata().map_err(io())?.len();
        let Some(content) = length.checked_sub(HASH_BYTES).filter(|content| *content >= 24) else {
            return Ok(None);
        };
        let mut stored = [0; HASH_BYTES as usize];
        file.read_exact_at(&mut stored, content).map_err(io())?;
        if Digest::of_reader((&file).take(content)).map_err(io())?.0 != stored {
            return Ok(None);
        }
        let mut begin = [0; 16];
        file.read_exact_at(&mut begin, 0).map_err(io())?;
        let (magic, rows) = begin.split_at(8);
        let rows = u64::from_le_bytes(rows.try_into().expect("eight of sixteen bytes")) as usize;
        if magic != MAGIC {
            return Ok(None);
        }
        // The hash proves that the rest is intact.
        let mut bytes = vec![0; (rows + 1) * 8];
        file.read_exact_at(&mut bytes, 16).map_err(io())?;
        let offsets = bytes.as_chunks().0.iter().map(|&b| u64::from_le_bytes(b)).collect();
        let mut bytes = vec![0; rows * 4];
        file.read_exact_at(&mut bytes, 16 + (rows as u64 + 1) * 8).map_err(io())?;
        let answers = bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        Ok(Some(Self { path: path.to_owned(), remade: false, file, offsets, answers }))
    }

    /// Its path, if it was damaged and has been made again.
    pub fn remade(&self) -> Option<&Path> {
        self.remade.then_some(self.path.as_path())
    }

    /// Of each row, the tokens that the model reads, and whether it is a text (see
    /// [`Sample::is_text`]).
    pub fn rows(&self) -> impl Iterator<Item = (usize, bool)> {
        let inputs = self.offsets.windows(2).map(|pair| (pair[1] - pair[0]).saturating_sub(1) as usize);
        inputs.zip((0..).map(|index| self.is_text(index)))
    }

    /// Whether a row is a text.
    pub fn is_text(&self, index: u64) -> bool {
        self.answers[index as usize] == 1
    }

    /// A row.
    pub fn sample(&self, index: u64) -> Result<Sample, TrainError> {
        self.read(index, 0, usize::MAX, self.answers[index as usize] as usize)
    }

    /// The part of a text from a token on that has at most this many inputs.
    pub fn part(&self, index: u64, from: usize, inputs: usize) -> Result<Sample, TrainError> {
        self.read(index, from, inputs.saturating_add(1), 1)
    }

    /// At most `count` ids of a row, from the one at `skip` on.
    fn read(&self, index: u64, skip: usize, count: usize, answer: usize) -> Result<Sample, TrainError> {
        let rows = self.answers.len() as u64;
        let (from, to) = (self.offsets[index as usize] + skip as u64, self.offsets[index as usize + 1]);
        let start = 16 + (rows + 1) * 8 + rows * 4;
        let mut bytes = vec![0; (to.saturating_sub(from) as usize).min(count) * 4];
        self.file.read_exact_at(&mut bytes, start + from * 4).map_err(TrainError::file(&self.path))?;
        let ids = bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        Ok(Sample { ids, answer })
    }
}

const DAMAGED: &str = "it doesn't read back as written; is the disk healthy?";

/// Tokenises all rows. Ids are staged in a separate file, because the table of offsets precedes
/// them.
fn write(source: &dyn Source, rows: u64, chat: &Chat, path: &Path) -> Result<(), TrainError> {
    let io = || TrainError::file(path);
    let (mut offsets, mut answers) = (vec![0u64], Vec::new());
    let mut ids = BufWriter::new(Staged::new(path).map_err(io())?);
    for index in 0..rows {
        let wrong = |e: crate::text::tokenizer::TokenizerError| TrainError::Row {
            place: source.place(index),
            message: e.to_string(),
        };
        let sample = chat.sample(&source.row(index, None)?).map_err(wrong)?;
        for id in &sample.ids {
            ids.write_all(&id.to_le_bytes()).map_err(io())?;
        }
        offsets.push(offsets.last().copied().unwrap_or_default() + sample.ids.len() as u64);
        answers.push(sample.answer as u32);
    }
    let ids = ids.into_inner().map_err(|e| io()(e.into_error()))?;
    let mut to = Hashing { to: Staged::new(path).map_err(io())?, hasher: Sha256::new() };
    let mut put = |bytes: &[u8]| to.write_all(bytes);
    put(MAGIC).map_err(io())?;
    put(&rows.to_le_bytes()).map_err(io())?;
    put(&offsets.iter().flat_map(|o| o.to_le_bytes()).collect::<Vec<_>>()).map_err(io())?;
    put(&answers.iter().flat_map(|a| a.to_le_bytes()).collect::<Vec<_>>()).map_err(io())?;
    let mut staged = fs_err::File::open(ids.path()).map_err(io())?;
    std::io::copy(&mut staged, &mut to).map_err(io())?;
    let Hashing { mut to, hasher } = to;
    to.write_all(&hasher.finalize()).map_err(io())?;
    to.commit().map_err(io())
}

/// Hashes what is written through it.
struct Hashing {
    to: Staged,
    hasher: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::data::Jsonl;
    use crate::train::tests::tokenizer;

    #[test]
    fn rows_come_back_and_a_damaged_file_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        crate::atomic_file::write(&path, b"{\"text\":\"one\"}\n{\"prompt\":\"a\",\"completion\":\"bb\"}\n")
            .unwrap();
        let source = Jsonl::open(&[path]).unwrap();
        let chat = Chat::of_post(tokenizer());
        let open = || {
            TokenFile::of(&source, 2, source.digest().unwrap(), &chat, &folder.path().join("cache")).unwrap()
        };
        let expected: Vec<Sample> =
            (0..2).map(|i| chat.sample(&source.row(i, None).unwrap()).unwrap()).collect();
        let read = |file: &TokenFile| [0, 1].map(|i| file.sample(i).unwrap()).to_vec();
        let made = open();
        assert_eq!(read(&made), expected);
        let mut bytes = fs_err::read(&made.path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        crate::atomic_file::write(&made.path, &bytes).unwrap();
        assert!(TokenFile::open(&made.path).unwrap().is_none());
        assert_eq!(read(&open()), expected);
        crate::atomic_file::write(&made.path, b"short").unwrap();
        assert_eq!(read(&open()), expected);
        // A single file; nothing staged is left.
        assert_eq!(fs_err::read_dir(folder.path().join("cache")).unwrap().count(), 1);
    }
}
