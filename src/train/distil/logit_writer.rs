//! Writes the outputs of a teacher as they are computed. A file grows document by document,
//! survives a kill, and finally becomes the `teacher.safetensors` that
//! [`LogitCache`](super::LogitCache) reads.
//!
//! `teacher.partial`, little-endian: 8 bytes magic, the fingerprint of the teacher (SHA-256); then
//! for each document its hash (32 bytes), its u32 number m of answer tokens, `m * top` u32 ids,
//! `m * top` f32 probabilities, m f32 tails, and the first 8 bytes of the SHA-256 of all that.
//! Memory holds the index of documents only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use sha2::{Digest as _, Sha256};

use super::logit_cache::{FILE, LogitCache, TopTokens, documents};
use crate::atomic_file;
use crate::digest::Digest;
use crate::model::safetensors_file::write_streamed;
use crate::train::TrainError;
use crate::train::batch::PackedRow;

const PARTIAL: &str = "teacher.partial";
const MAGIC: &[u8; 8] = b"bspkd001";
/// Magic and fingerprint.
const HEAD: u64 = 40;
/// A document's hash and its number of tokens.
const RECORD_HEAD: usize = 36;
/// The checksum after a document.
const CHECK: usize = 8;

/// Writes the outputs of a teacher.
pub struct LogitWriter {
    folder: PathBuf,
    path: PathBuf,
    fingerprint: Digest,
    file: File,
    /// Offset of the next document.
    end: u64,
    top: usize,
    temperature: f32,
    /// Offset of each document's ids, and its number of tokens.
    found: BTreeMap<Digest, (u64, usize)>,
}

/// Lengths of a document's three parts, in bytes.
fn parts(count: usize, top: usize) -> [usize; 3] {
    [count * top * 4, count * top * 4, count * 4]
}

impl LogitWriter {
    /// Starts writing a cache with the `top` most likely tokens at this temperature to a folder.
    /// Continues a partial file or a finished cache with the same `fingerprint`, the hash of
    /// everything that determines the outputs for a document.
    ///
    /// # Errors
    /// A file with another fingerprint; I/O errors.
    pub fn open(
        folder: &Path,
        fingerprint: Digest,
        top: usize,
        temperature: f32,
    ) -> Result<Self, TrainError> {
        let path = folder.join(PARTIAL);
        let file = atomic_file::grow(&path).map_err(TrainError::file(&path))?;
        let length = file.metadata().map_err(TrainError::file(&path))?.len();
        let (folder, found) = (folder.to_owned(), BTreeMap::new());
        let mut writer = Self { folder, path, fingerprint, file, end: HEAD, top, temperature, found };
        if length < HEAD {
            let head = [&MAGIC[..], &fingerprint.0].concat();
            writer.file.write_all_at(&head, 0).map_err(TrainError::file(&writer.path))?;
            writer.take_finished()?;
            return Ok(writer);
        }
        let mut head = [0; HEAD as usize];
        writer.file.read_exact_at(&mut head, 0).map_err(TrainError::file(&writer.path))?;
        let (magic, begun_by) = head.split_at(MAGIC.len());
        let begun_by = Digest(begun_by.try_into().expect("32 bytes are left"));
        if magic != MAGIC {
            let message = "it is no file of a teacher's words: remove it, or write to another folder".into();
            return Err(TrainError::Teacher { endpoint: writer.path.display().to_string(), message });
        }
        writer.check_fingerprint(&writer.path, begun_by)?;
        writer.scan(length).map_err(TrainError::file(&writer.path))?;
        Ok(writer)
    }

    /// Takes over a finished cache with the same fingerprint, to add rows of more steps.
    fn take_finished(&mut self) -> Result<(), TrainError> {
        if !self.folder.join(FILE).exists() {
            return Ok(());
        }
        let cache = LogitCache::open(&self.folder, self.temperature, usize::MAX)?;
        self.check_fingerprint(&self.folder.join(FILE), cache.fingerprint())?;
        cache.each(|key, answers| self.put(key, &answers))
    }

    /// Outputs of another teacher are neither mixed with these nor deleted.
    fn check_fingerprint(&self, path: &Path, fingerprint: Digest) -> Result<(), TrainError> {
        if fingerprint == self.fingerprint {
            return Ok(());
        }
        let message = format!(
            "it was written with another teacher, tokenizer, distil.top or distil.temperature ({fingerprint}, now {}): remove it to \
             begin anew, or write to another folder",
            self.fingerprint
        );
        Err(TrainError::Teacher { endpoint: path.display().to_string(), message })
    }

    /// Indexes the complete documents and truncates the rest.
    fn scan(&mut self, length: u64) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(HEAD))?;
        let mut reader = BufReader::with_capacity(1 << 20, &self.file);
        let mut record = Vec::new();
        while length - self.end >= (RECORD_HEAD + CHECK) as u64 {
            record.resize(RECORD_HEAD, 0);
            reader.read_exact(&mut record)?;
            let (key, count) = record.split_at(32);
            let key = Digest(key.try_into().expect("32 bytes were cut off"));
            let count = u32::from_le_bytes(count.try_into().expect("4 bytes are left")) as usize;
            let body: u64 = parts(count, self.top).into_iter().map(|part| part as u64).sum();
            let whole = RECORD_HEAD as u64 + body + CHECK as u64;
            if length - self.end < whole {
                break;
            }
            record.resize(whole as usize, 0);
            reader.read_exact(&mut record[RECORD_HEAD..])?;
            let (content, check) = record.split_at(record.len() - CHECK);
            if Sha256::digest(content)[..CHECK] != *check {
                break;
            }
            self.found.insert(key, (self.end + RECORD_HEAD as u64, count));
            self.end += whole;
        }
        self.file.set_len(self.end)
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.found.len()
    }

    /// Whether all documents of a row have been written.
    pub fn has(&self, row: &PackedRow) -> bool {
        documents(row).all(|(key, _)| self.found.contains_key(&key))
    }

    /// Adds the outputs for a row, in the order of its targets. Documents that exist stay as they
    /// are.
    ///
    /// # Errors
    /// I/O errors; then nothing of the document is kept.
    pub fn add(&mut self, row: &PackedRow, answers: Vec<TopTokens>) -> Result<(), TrainError> {
        let mut answers = answers.into_iter();
        for (key, count) in documents(row) {
            let answers: Vec<TopTokens> = answers.by_ref().take(count).collect();
            if self.found.contains_key(&key) {
                continue;
            }
            self.put(key, &answers)?;
        }
        Ok(())
    }

    fn put(&mut self, key: Digest, answers: &[TopTokens]) -> Result<(), TrainError> {
        let record = self.record(key, answers);
        if let Err(error) = self.file.write_all_at(&record, self.end) {
            // The cause may prevent the truncation too; the next start repeats it.
            let _ = self.file.set_len(self.end);
            return Err(TrainError::file(&self.path)(error));
        }
        self.found.insert(key, (self.end + RECORD_HEAD as u64, answers.len()));
        self.end += record.len() as u64;
        Ok(())
    }

    fn record(&self, key: Digest, answers: &[TopTokens]) -> Vec<u8> {
        let mut record = key.0.to_vec();
        record.extend((answers.len() as u32).to_le_bytes());
        for answer in answers {
            // If the teacher named fewer tokens, the rest have no probability.
            let id = |at| answer.ids.get(at).copied().unwrap_or(u32::MAX).to_le_bytes();
            record.extend((0..self.top).flat_map(id));
        }
        for answer in answers {
            let probability = |at| answer.probabilities.get(at).copied().unwrap_or(0.0f32).to_le_bytes();
            record.extend((0..self.top).flat_map(probability));
        }
        record.extend(answers.iter().flat_map(|answer| answer.tail.to_le_bytes()));
        let check = Sha256::digest(&record);
        record.extend(&check[..CHECK]);
        record
    }

    /// Writes the finished cache and removes the partial file; returns the number of documents.
    ///
    /// # Errors
    /// I/O errors; then the partial file is unchanged.
    pub fn finish(self) -> Result<usize, TrainError> {
        let (n, top) = (self.found.len(), self.top);
        let m: usize = self.found.values().map(|(_, count)| count).sum();
        let texts = [
            ("speaker", self.fingerprint.to_string()),
            ("temperature", self.temperature.to_string()),
            ("top", top.to_string()),
        ];
        // Wide types first, so that each tensor is aligned to its type.
        let tensors = [
            ("offsets", Dtype::I64, vec![n + 1]),
            ("ids", Dtype::U32, vec![m, top]),
            ("probabilities", Dtype::F32, vec![m, top]),
            ("tail", Dtype::F32, vec![m]),
            ("keys", Dtype::U8, vec![n, 32]),
        ];
        write_streamed(&self.folder.join(FILE), &texts, &tensors, |name, out| match name {
            "offsets" => self.write_offsets(out),
            "ids" => self.write_part(0, out),
            "probabilities" => self.write_part(1, out),
            "tail" => self.write_part(2, out),
            _ => self.found.keys().try_for_each(|key| out.write_all(&key.0)),
        })?;
        fs_err::remove_file(&self.path).map_err(TrainError::file(&self.path))?;
        Ok(n)
    }

    fn write_offsets(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let mut offset = 0i64;
        out.write_all(&offset.to_le_bytes())?;
        self.found.values().try_for_each(|(_, count)| {
            offset += *count as i64;
            out.write_all(&offset.to_le_bytes())
        })
    }

    /// Writes one part of every document, with one document at a time in memory.
    fn write_part(&self, part: usize, out: &mut dyn Write) -> std::io::Result<()> {
        let mut buffer = Vec::new();
        self.found.values().try_for_each(|&(from, count)| {
            let lengths = parts(count, self.top);
            buffer.resize(lengths[part], 0);
            self.file.read_exact_at(&mut buffer, from + lengths[..part].iter().sum::<usize>() as u64)?;
            out.write_all(&buffer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: u32) -> PackedRow {
        PackedRow {
            ids: (0..6).map(|at| at + seed).collect(),
            documents: vec![(0, 3), (3, 3)],
            targets: vec![(1, seed + 2), (4, seed + 4), (5, seed + 5)],
        }
    }

    fn answers(seed: u32) -> Vec<TopTokens> {
        let answer = |at: u32| TopTokens::new(vec![seed + at, at], vec![0.5, 0.125 * at as f32]);
        (1..=3).map(answer).collect()
    }

    const FINGERPRINT: Digest = Digest([7; 32]);

    fn store(folder: &Path, seeds: impl IntoIterator<Item = u32>) -> LogitWriter {
        let mut writer = LogitWriter::open(folder, FINGERPRINT, 3, 1.0).unwrap();
        for seed in seeds {
            writer.add(&row(seed), answers(seed)).unwrap();
            assert!(writer.has(&row(seed)));
        }
        writer
    }

    /// A file that was cut at any byte, or has any wrong byte in its last document, is continued
    /// to the same result.
    #[test]
    fn a_writer_that_was_killed_goes_on_and_ends_with_the_same_bytes() {
        let whole = tempfile::tempdir().unwrap();
        assert_eq!(store(whole.path(), [10, 20, 30]).finish().unwrap(), 6);
        let expected = fs_err::read(whole.path().join(FILE)).unwrap();
        assert!(!whole.path().join(PARTIAL).exists());
        // A finished cache is continued for more rows.
        let more = store(whole.path(), [40]);
        assert_eq!((more.documents(), more.finish().unwrap()), (8, 8));
        assert_eq!(store(whole.path(), [10, 20, 30]).finish().unwrap(), 8);
        let found =
            LogitCache::open(whole.path(), 1.0, 320).unwrap().top_tokens(&[row(20), row(10)]).unwrap();
        assert_eq!(found, [answers(20), answers(10)].concat());

        let begun = tempfile::tempdir().unwrap();
        drop(store(begun.path(), [10, 20]));
        let grown = fs_err::read(begun.path().join(PARTIAL)).unwrap();
        for cut in 0..=grown.len() {
            let folder = tempfile::tempdir().unwrap();
            let mut left = grown[..cut].to_vec();
            // Half of the cases have a damaged byte instead.
            if cut % 2 == 1 && cut > HEAD as usize {
                left[cut - 1] ^= 0x55;
                left.extend(&grown[cut..]);
            }
            crate::atomic_file::write(&folder.path().join(PARTIAL), &left).unwrap();
            let writer = store(folder.path(), [10, 20, 30]);
            assert_eq!(writer.finish().unwrap(), 6);
            assert!(fs_err::read(folder.path().join(FILE)).unwrap() == expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_store_that_names_no_tokens_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path(), [10]).finish().unwrap();
        let small =
            LogitCache::open(folder.path(), 1.0, 12).unwrap().top_tokens(&[row(10)]).unwrap_err().to_string();
        assert!(small.contains("it names token 12, the student has 12"), "{small}");
        let mut writer = store(folder.path(), []);
        let twice = [vec![TopTokens::new(vec![3, 3], vec![0.5, 0.5])], answers(20)[1..].to_vec()].concat();
        writer.add(&row(20), twice).unwrap();
        writer.finish().unwrap();
        let twice = LogitCache::open(folder.path(), 1.0, 320)
            .unwrap()
            .top_tokens(&[row(20)])
            .unwrap_err()
            .to_string();
        assert!(twice.contains("names token 3 twice"), "{twice}");
    }

    #[test]
    fn words_of_another_teacher_are_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        drop(store(folder.path(), [10]));
        let another = Digest([8; 32]);
        let other = LogitWriter::open(folder.path(), another, 3, 1.0).err().unwrap().to_string();
        assert!(other.contains("teacher.partial") && other.contains(&another.to_string()), "{other}");
        assert_eq!(store(folder.path(), []).documents(), 2);
    }
}
