//! What a teacher said, on disk: for every answer token the likeliest tokens with their probabilities, and the rest as one.
//!
//! `teacher.safetensors`: per document its hash (`keys`, U8 `[n, 32]`, sorted) and where its tokens begin (`offsets`, I64
//! `[n + 1]`); per answer token `ids` (U32 `[m, k]`), `probabilities` (F32 `[m, k]`) and `tail` (F32 `[m]`). Temperature and k
//! stand in the metadata.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{SafeTensors, TensorView};
use safetensors::{Dtype, SafeTensorError};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::model::ops::distillation::Taught;
use crate::model::safetensors_file::write_views;
use crate::train::TrainError;
use crate::train::batch::PackedRow;

const FILE: &str = "teacher.safetensors";

/// What a teacher says before one token.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The likeliest tokens.
    pub ids: Vec<u32>,
    /// One for each.
    pub probabilities: Vec<f32>,
    /// The probability of all others together.
    pub tail: f32,
}

impl Answer {
    /// Tokens with their probabilities; what is left of 1 is the tail.
    pub fn new(ids: Vec<u32>, probabilities: Vec<f32>) -> Self {
        let sum: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
        Self { ids, probabilities, tail: (1.0 - sum).max(0.0) as f32 }
    }

    /// The `top` likeliest of what a teacher says, at a temperature.
    pub fn of(taught: Taught, top: usize, temperature: f32) -> Self {
        match taught {
            Taught::Top { ids, probabilities, tail } => {
                Self { ids: ids.to_vec(), probabilities: probabilities.to_vec(), tail }
            }
            Taught::Logits(logits) => {
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

/// Documents of a row: the hash of what is read and learnt of each, and how many answer tokens it has.
fn documents(row: &PackedRow) -> impl Iterator<Item = (Digest, usize)> {
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

/// Collects what a teacher says.
pub struct Writer {
    folder: PathBuf,
    top: usize,
    temperature: f32,
    found: BTreeMap<Digest, Vec<Answer>>,
}

impl Writer {
    /// A store of this many likeliest tokens at this temperature, to be written to a folder.
    pub fn new(folder: &Path, top: usize, temperature: f32) -> Self {
        Self { folder: folder.to_owned(), top, temperature, found: BTreeMap::new() }
    }

    /// Whether all documents of a row are there.
    pub fn has(&self, row: &PackedRow) -> bool {
        documents(row).all(|(key, _)| self.found.contains_key(&key))
    }

    /// Takes the answers of a row, in the order of its targets.
    pub fn add(&mut self, row: &PackedRow, answers: Vec<Answer>) {
        let mut answers = answers.into_iter();
        for (key, count) in documents(row) {
            self.found.insert(key, answers.by_ref().take(count).collect());
        }
    }

    /// Writes the folder; gives the number of documents.
    ///
    /// # Errors
    /// The disk.
    pub fn finish(self) -> Result<usize, TrainError> {
        let Self { folder, top, temperature, found } = self;
        let (mut keys, mut offsets, mut ids, mut ps, mut tails) =
            (vec![], vec![0i64], vec![], vec![], vec![]);
        for (key, answers) in &found {
            keys.extend(key.0);
            offsets.push(offsets.last().copied().unwrap_or_default() + answers.len() as i64);
            for answer in answers {
                for at in 0..top {
                    // A teacher that named fewer: tokens without probability.
                    ids.extend(answer.ids.get(at).copied().unwrap_or(u32::MAX).to_le_bytes());
                    ps.extend(answer.probabilities.get(at).copied().unwrap_or(0.0).to_le_bytes());
                }
                tails.extend(answer.tail.to_le_bytes());
            }
        }
        let offsets: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        let (n, m) = (found.len(), tails.len() / 4);
        let view = |dtype, shape: Vec<usize>, bytes| {
            TensorView::new(dtype, shape, bytes).expect("shape and bytes come from one list")
        };
        let tensors = [
            ("keys", view(Dtype::U8, vec![n, 32], &keys)),
            ("offsets", view(Dtype::I64, vec![n + 1], &offsets)),
            ("ids", view(Dtype::U32, vec![m, top], &ids)),
            ("probabilities", view(Dtype::F32, vec![m, top], &ps)),
            ("tail", view(Dtype::F32, vec![m], &tails)),
        ];
        let metadata = HashMap::from([
            ("temperature".to_owned(), temperature.to_string()),
            ("top".to_owned(), top.to_string()),
        ]);
        let path = folder.join(FILE);
        write_views(&path, tensors, metadata)?;
        Ok(n)
    }
}

fn wrong(path: &Path, error: &SafeTensorError) -> TrainError {
    TrainError::Teacher { endpoint: path.display().to_string(), message: error.to_string() }
}

/// What a teacher said before.
pub struct Store {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Where the tensors lie in the file.
    places: BTreeMap<&'static str, std::ops::Range<usize>>,
    top: usize,
    index: HashMap<Digest, std::ops::Range<usize>>,
}

impl Store {
    /// Opens a folder that [`Writer`] wrote for this temperature.
    ///
    /// # Errors
    /// A file that is none; another temperature.
    pub fn open(folder: &Path, temperature: f32) -> Result<Self, TrainError> {
        let path = folder.join(FILE);
        let bytes = fs_err::read(&path).map_err(TrainError::file(&path))?;
        let refuse = |message: String| TrainError::Teacher { endpoint: path.display().to_string(), message };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(&path, &e))?;
        let text = |key: &str| metadata.metadata().as_ref().and_then(|texts| texts.get(key)).cloned();
        let stored = text("temperature").unwrap_or_default();
        if stored != temperature.to_string() {
            return Err(refuse(format!(
                "it was written at temperature {stored}, distil.temperature is {temperature}"
            )));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(&path, &e))?;
        let mut places = BTreeMap::new();
        let mut shapes = BTreeMap::new();
        for (name, dtype) in [
            ("keys", Dtype::U8),
            ("offsets", Dtype::I64),
            ("ids", Dtype::U32),
            ("probabilities", Dtype::F32),
            ("tail", Dtype::F32),
        ] {
            let tensor = file.tensor(name).map_err(|e| wrong(&path, &e))?;
            if tensor.dtype() != dtype {
                return Err(refuse(format!("{name} is {:?}, expected {dtype:?}", tensor.dtype())));
            }
            let start = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
            places.insert(name, start..start + tensor.data().len());
            shapes.insert(name, tensor.shape().to_vec());
        }
        let (n, m) = (shapes["keys"][0], shapes["tail"][0]);
        let top = shapes["ids"].get(1).copied().unwrap_or(0);
        let expected = [vec![n, 32], vec![n + 1], vec![m, top], vec![m, top], vec![m]];
        for (name, expected) in ["keys", "offsets", "ids", "probabilities", "tail"].into_iter().zip(expected)
        {
            if shapes[name] != expected {
                return Err(refuse(format!("{name} has shape {:?}, expected {expected:?}", shapes[name])));
            }
        }
        let offsets: Vec<i64> =
            bytes[places["offsets"].clone()].as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect();
        if offsets.windows(2).any(|pair| pair[0] < 0 || pair[1] < pair[0]) || offsets[n] != m as i64 {
            return Err(refuse("its offsets do not rise to the number of its tokens".into()));
        }
        let keys = bytes[places["keys"].clone()].as_chunks::<32>().0.iter().map(|key| Digest(*key));
        let ranges = offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
        let index = keys.zip(ranges).collect();
        Ok(Self { path, bytes, places, top, index })
    }

    /// Hash of the whole file.
    pub(super) fn digest(&self) -> Digest {
        Digest(Sha256::digest(&self.bytes).into())
    }

    /// What was said of the rows' answers.
    pub(super) fn answers(&self, rows: &[PackedRow]) -> Result<Vec<Answer>, TrainError> {
        let mut answers = Vec::new();
        for (key, count) in rows.iter().flat_map(documents) {
            match self.index.get(&key) {
                Some(range) if range.len() == count => {
                    answers.extend(range.clone().map(|at| self.answer(at)));
                }
                _ => {
                    let message = format!(
                        "it has nothing about a row of {count} answer tokens (key {}): write it again with this recipe \
                         (`bespoke data distil`)",
                        key.short()
                    );
                    return Err(TrainError::Teacher { endpoint: self.path.display().to_string(), message });
                }
            }
        }
        Ok(answers)
    }

    fn answer(&self, at: usize) -> Answer {
        let part = |name: &str, from: usize, count: usize| {
            let start = self.places[name].start + from * 4;
            self.bytes[start..start + count * 4].as_chunks::<4>().0
        };
        let ids = part("ids", at * self.top, self.top).iter().map(|&b| u32::from_le_bytes(b));
        let ps = part("probabilities", at * self.top, self.top).iter().map(|&b| f32::from_le_bytes(b));
        let (ids, probabilities) = ids.zip(ps).filter(|(id, _)| *id != u32::MAX).unzip();
        let tail = f32::from_le_bytes(part("tail", at, 1)[0]);
        Answer { ids, probabilities, tail }
    }
}
