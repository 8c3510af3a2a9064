//! The outputs of a teacher on disk: for every answer token the most likely tokens with their
//! probabilities, and the total of the rest.
//!
//! `teacher.safetensors`: per document its hash (`keys`, U8 `[n, 32]`, sorted) and the index of
//! its first token (`offsets`, I64 `[n + 1]`); per answer token `ids` (U32 `[m, k]`),
//! `probabilities` (F32 `[m, k]`) and `tail` (F32 `[m]`). Temperature and k are in the metadata.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use sha2::{Digest as _, Sha256};

use crate::digest::{Digest, NotADigest};
use crate::model::ops::distillation::TeacherOutput;
use crate::model::safetensors_file::SafetensorsFile;
use crate::train::TrainError;
use crate::train::batch::PackedRow;

pub(super) const FILE: &str = "teacher.safetensors";

/// A teacher's prediction of one token.
#[derive(Debug, Clone, PartialEq)]
pub struct TopTokens {
    /// The most likely tokens.
    pub ids: Vec<u32>,
    /// One per token.
    pub probabilities: Vec<f32>,
    /// The total probability of all others.
    pub tail: f32,
}

impl TopTokens {
    /// Tokens with their probabilities; the rest of 1 is the tail.
    pub fn new(ids: Vec<u32>, probabilities: Vec<f32>) -> Self {
        let sum: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
        Self { ids, probabilities, tail: (1.0 - sum).max(0.0) as f32 }
    }

    /// The `top` most likely tokens of a teacher's output, at a temperature.
    pub fn of(taught: TeacherOutput, top: usize, temperature: f32) -> Self {
        match taught {
            TeacherOutput::Top { ids, probabilities, tail } => {
                Self { ids: ids.to_vec(), probabilities: probabilities.to_vec(), tail }
            }
            TeacherOutput::Logits(logits) => {
                let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let raised = |logit: f32| f64::from((logit - most) / temperature).exp();
                let sum: f64 = logits.iter().map(|&logit| raised(logit)).sum();
                let mut order: Vec<u32> = (0..logits.len() as u32).collect();
                let top = top.min(order.len());
                let by_logit =
                    |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
                if top < order.len() {
                    order.select_nth_unstable_by(top, by_logit);
                }
                order.truncate(top);
                order.sort_unstable_by(by_logit);
                let p = order.iter().map(|&id| (raised(logits[id as usize]) / sum) as f32).collect();
                Self::new(order, p)
            }
        }
    }
}

/// Why ids are not distinct tokens of a vocabulary, if they aren't.
pub(super) fn no_tokens(ids: &[u32], vocabulary: usize) -> Option<String> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        return Some(format!("it names token {id}, the student has {vocabulary}"));
    }
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let twice = sorted.windows(2).find(|pair| pair[0] == pair[1])?;
    Some(format!("it names token {} twice", twice[0]))
}

/// The documents of a row: the hash of what each reads and learns, and its number of answer
/// tokens.
pub(super) fn documents(row: &PackedRow) -> impl Iterator<Item = (Digest, usize)> {
    row.documents.iter().map(|&(start, len)| {
        let mut hasher = Sha256::new();
        row.ids[start..start + len].iter().for_each(|id| hasher.update(id.to_le_bytes()));
        let mut count = 0;
        for (position, target) in &row.targets {
            if (start..start + len).contains(&(*position as usize)) {
                hasher.update((*position - start as u32).to_le_bytes());
                hasher.update(target.to_le_bytes());
                count += 1;
            }
        }
        (Digest(hasher.finalize().into()), count)
    })
}

/// Cached outputs of a teacher. Memory holds the index of documents only.
pub struct LogitCache {
    file: SafetensorsFile,
    fingerprint: Digest,
    top: usize,
    /// Entries of the student's vocabulary.
    vocabulary: usize,
    index: BTreeMap<Digest, Range<usize>>,
}

impl LogitCache {
    /// Opens a folder that [`LogitWriter`](super::LogitWriter) wrote for this temperature; its
    /// tokens must be among the `vocabulary` first.
    ///
    /// # Errors
    /// A file of another format; another temperature.
    pub fn open(folder: &Path, temperature: f32, vocabulary: usize) -> Result<Self, TrainError> {
        let path = folder.join(FILE);
        let file = SafetensorsFile::open(&path)?;
        let refuse = |message: String| TrainError::Teacher { endpoint: path.display().to_string(), message };
        let text = |key: &str| file.metadata().and_then(|texts| texts.get(key)).cloned().unwrap_or_default();
        let stored = text("temperature");
        if stored != temperature.to_string() {
            return Err(refuse(format!(
                "it was written at temperature {stored}, distil.temperature is {temperature}"
            )));
        }
        let fingerprint = text("speaker")
            .parse()
            .map_err(|error: NotADigest| refuse(format!("metadata \"speaker\": {error}")))?;
        let all = [
            ("keys", Dtype::U8),
            ("offsets", Dtype::I64),
            ("ids", Dtype::U32),
            ("probabilities", Dtype::F32),
            ("tail", Dtype::F32),
        ];
        let mut shapes = HashMap::new();
        for (name, dtype) in all {
            let tensor = file.info(name).ok_or_else(|| refuse(format!("tensor {name:?} is missing")))?;
            if tensor.dtype != dtype {
                return Err(refuse(format!("{name} is {:?}, expected {dtype:?}", tensor.dtype)));
            }
            shapes.insert(name, tensor.shape.clone());
        }
        let length = |name: &str| shapes[name].first().copied().unwrap_or(0);
        let (n, m) = (length("keys"), length("tail"));
        let top = shapes["ids"].get(1).copied().unwrap_or(0);
        let expected = [vec![n, 32], vec![n.saturating_add(1)], vec![m, top], vec![m, top], vec![m]];
        for ((name, _), expected) in all.into_iter().zip(expected) {
            if shapes[name] != expected {
                return Err(refuse(format!("{name} has shape {:?}, expected {expected:?}", shapes[name])));
            }
        }
        let bytes = |name: &str, count: usize| {
            let mut bytes = vec![0; count];
            file.read_bytes(name, 0, &mut bytes).map(|()| bytes)
        };
        let offsets = bytes("offsets", (n + 1) * 8)?;
        let offsets: Vec<i64> = offsets.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect();
        if offsets.windows(2).any(|pair| pair[0] < 0 || pair[1] < pair[0]) || offsets[n] != m as i64 {
            return Err(refuse("its offsets do not rise to the number of its tokens".into()));
        }
        let keys = bytes("keys", n * 32)?;
        let keys = keys.as_chunks::<32>().0.iter().map(|key| Digest(*key));
        let ranges = offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
        let index = keys.zip(ranges).collect();
        Ok(Self { file, fingerprint, top, vocabulary, index })
    }

    /// Hash of the teacher and its settings: equal fingerprints mean equal outputs for equal
    /// documents.
    pub(super) fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// Passes the outputs for each document to `see`, in the order of their hashes.
    ///
    /// # Errors
    /// Those of the file and of `see`.
    pub(super) fn each(
        &self,
        mut see: impl FnMut(Digest, Vec<TopTokens>) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        self.index.iter().try_for_each(|(key, range)| {
            let mut answers = Vec::new();
            self.read(range.clone(), &mut answers)?;
            see(*key, answers)
        })
    }

    /// Checks that the cache has outputs for every answer of these rows.
    ///
    /// # Errors
    /// The first answer that it lacks.
    pub(super) fn check(&self, rows: &[PackedRow]) -> Result<(), TrainError> {
        rows.iter().flat_map(documents).try_for_each(|(key, count)| self.find(key, count).map(drop))
    }

    /// The outputs for the answers of rows.
    pub(super) fn top_tokens(&self, rows: &[PackedRow]) -> Result<Vec<TopTokens>, TrainError> {
        let mut answers = Vec::new();
        for (key, count) in rows.iter().flat_map(documents) {
            self.read(self.find(key, count)?, &mut answers)?;
        }
        Ok(answers)
    }

    /// The range of a document's outputs.
    fn find(&self, key: Digest, count: usize) -> Result<Range<usize>, TrainError> {
        let found = self.index.get(&key).filter(|range| range.len() == count);
        found.cloned().ok_or_else(|| {
            self.wrong(format!(
                "it has nothing about a row of {count} answer tokens (key {}): `bespoke data distil` with this recipe adds what \
                 is missing",
                key.short()
            ))
        })
    }

    fn wrong(&self, message: String) -> TrainError {
        TrainError::Teacher { endpoint: self.file.path().display().to_string(), message }
    }

    /// Reads the outputs for a range of tokens.
    fn read(&self, range: Range<usize>, answers: &mut Vec<TopTokens>) -> Result<(), TrainError> {
        let part = |name: &str, width: usize| -> Result<Vec<[u8; 4]>, TrainError> {
            let mut bytes = vec![0; range.len() * width * 4];
            self.file.read_bytes(name, range.start * width * 4, &mut bytes)?;
            Ok(bytes.as_chunks().0.to_vec())
        };
        let (ids, probabilities) = (part("ids", self.top)?, part("probabilities", self.top)?);
        for (at, tail) in part("tail", 1)?.into_iter().enumerate() {
            let of = at * self.top..(at + 1) * self.top;
            let pairs = ids[of.clone()].iter().zip(&probabilities[of]);
            let pairs = pairs.map(|(&id, &p)| (u32::from_le_bytes(id), f32::from_le_bytes(p)));
            let (ids, probabilities): (Vec<u32>, Vec<f32>) = pairs.filter(|(id, _)| *id != u32::MAX).unzip();
            let tail = f32::from_le_bytes(tail);
            let token = range.start + at;
            if let Some(wrong) = no_tokens(&ids, self.vocabulary) {
                return Err(self.wrong(format!("answer token {token}: {wrong}")));
            }
            let share = |p: &f32| (0.0..=1.0 + 1e-3).contains(p);
            if let Some(p) = probabilities.iter().chain([&tail]).find(|p| !share(p)) {
                return Err(
                    self.wrong(format!("answer token {token} has a probability of {p}, expected 0 to 1"))
                );
            }
            answers.push(TopTokens { ids, probabilities, tail });
        }
        Ok(())
    }
}
