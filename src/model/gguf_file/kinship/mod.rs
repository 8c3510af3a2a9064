//! Decides whether a GGUF file holds the model of a Hugging Face folder: every tensor must be as
//! close to the folder's as its type allows.
//!
//! Files that this program didn't export don't say what they were made from, but their weights do:
//! a quantisation is close to its original in every tensor, and another model of the same shape is
//! not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::config_keys::read_config;
use super::names::architecture;
use super::{Source, Tensor, encode, tensors, values};
use crate::digest::Digest;
use crate::gguf::{GgmlType, Gguf, GgufError, TensorHasher, check_model};
use crate::model::DecoderConfig;
use crate::model::file_error::FileError;
use crate::model::hugging_face::{self, Weights};

/// The largest relative root mean square error that a type explains in a whole tensor: one and a
/// half times the largest that ggml's quantiser made on normal and heavy-tailed weights, with and
/// without an importance matrix (`docs/spokes.md` has the table, and a test checks it against
/// ggml). Ternary types are missing because they explain almost any error.
const EXPLAINED: [(GgmlType, f64); 24] = [
    (GgmlType::F32, 2e-5),
    (GgmlType::F16, 5e-4),
    (GgmlType::BF16, 3e-3),
    (GgmlType::Q8_0, 0.011),
    (GgmlType::Q6_K, 0.037),
    (GgmlType::Q5_1, 0.065),
    (GgmlType::Q5_K, 0.068),
    (GgmlType::Q5_0, 0.087),
    (GgmlType::Q4_1, 0.135),
    (GgmlType::Q4_K, 0.136),
    (GgmlType::IQ4_NL, 0.146),
    (GgmlType::IQ4_XS, 0.146),
    (GgmlType::NVFP4, 0.156),
    (GgmlType::Q4_0, 0.174),
    (GgmlType::MXFP4, 0.197),
    (GgmlType::IQ3_S, 0.267),
    (GgmlType::Q3_K, 0.285),
    (GgmlType::IQ3_XXS, 0.376),
    (GgmlType::IQ2_S, 0.495),
    (GgmlType::Q2_K, 0.5),
    (GgmlType::IQ2_XS, 0.568),
    (GgmlType::IQ2_XXS, 0.665),
    (GgmlType::IQ1_M, 0.84),
    (GgmlType::IQ1_S, 0.93),
];

/// A single row may be off by this factor times as much. Rows vary, and an unrelated row would be
/// off by 1.4.
const ROW: f64 = 2.5;
/// Rows are judged as if they were at least this large, relative to the root mean square of their
/// tensor: rows of untrained tokens are almost zero.
const FAINT: f64 = 0.5;

/// The relative error that a type explains; `None` for types that hold no weights.
pub fn explained(kind: GgmlType) -> Option<f64> {
    EXPLAINED.iter().find(|(of, _)| *of == kind).map(|(_, bound)| *bound)
}

/// How well a tensor of the file agrees with the folder's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// llama.cpp's name.
    pub tensor: String,
    /// Its type.
    pub kind: String,
    /// Root mean square of the difference, relative to the folder's values; of a row if that is
    /// worse.
    pub found: f64,
    /// The error that its type explains.
    pub bound: f64,
    /// The row, if one is worse than the whole.
    pub row: Option<u64>,
}

impl Agreement {
    fn ratio(&self) -> f64 {
        let ratio = self.found / self.bound;
        if ratio.is_nan() { f64::INFINITY } else { ratio }
    }
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tensor, kind, found, bound, row } = self;
        write!(f, "{tensor:?} ({kind})")?;
        if let Some(row) = row {
            write!(f, ", row {row},")?;
        }
        write!(f, " differs by {found:.3e} of its root mean square, and its type explains {bound:.1e}")
    }
}

/// The result for a folder and a file that hold the same model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kin {
    /// Hash of the folder's tensors, as in spokes that were trained on it.
    pub folder: Digest,
    /// Hash of the file's tensors.
    pub post: Digest,
    /// Number of compared tensors.
    pub tensors: usize,
    /// The tensor that comes closest to the error that its type explains.
    pub worst: Agreement,
}

/// Why a file does not hold a folder's model.
#[derive(Debug, thiserror::Error)]
pub enum Unlike {
    /// A file can't be read as a model.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another architecture or other constants.
    #[error("{path}: {key} is {found}, and {folder} has {expected}", path = path.display(), folder = folder.display())]
    Constant {
        /// The GGUF file.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
        /// The key of the configuration.
        key: String,
        /// Its value in the file.
        found: String,
        /// Its value in the folder.
        expected: String,
    },
    /// A tensor has no counterpart, so it can't be compared.
    #[error("{path}: tensor {tensor:?} {what}", path = path.display())]
    Alone {
        /// The GGUF file.
        path: PathBuf,
        /// llama.cpp's name.
        tensor: String,
        /// Which side has it, and which doesn't.
        what: String,
    },
    /// A tensor holds other weights.
    #[error("{path}: tensor {worst}: it was not made from {folder}", path = path.display(), folder = folder.display())]
    Differs {
        /// The GGUF file.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
        /// The tensor with the largest error.
        worst: Box<Agreement>,
    },
}

impl From<GgufError> for Unlike {
    fn from(error: GgufError) -> Self {
        Self::File(error.into())
    }
}

/// Compares every tensor, one at a time.
///
/// # Errors
/// [`Unlike`].
pub fn compare(folder: &Path, post: &Path) -> Result<Kin, Unlike> {
    let (config, _) = hugging_face::load_config(folder)?;
    let file = Gguf::open(post)?;
    check_model(&file)?;
    check_constants(folder, &config, &file)?;
    let weights = Weights::open(folder, &config)?;
    let mut expected = tensors(&config);
    expected.sort_by(|a, b| a.name.cmp(&b.name));
    let (mut hasher, mut seen, mut compared) = (TensorHasher::default(), BTreeSet::new(), Vec::new());
    for Tensor { name, dims, source, .. } in expected {
        let theirs = match source {
            Source::Values(values) => values,
            Source::Parameter(ours) => values::to_gguf(&config, &ours, weights.values(&ours)?),
        };
        hasher.add(&name, &dims, GgmlType::F32, &encode(&theirs, GgmlType::F32));
        for stored in counterparts(&file, &config, &name) {
            compared.push(agreement(&file, stored, &dims, &theirs)?);
            seen.insert(stored.to_owned());
        }
    }
    let extra = file.tensors().iter().map(|tensor| &tensor.name).find(|name| !seen.contains(*name));
    if let Some(extra) = extra {
        let what = "is in the file and not in the folder: it can't be compared".to_owned();
        return Err(Unlike::Alone { path: post.to_owned(), tensor: extra.clone(), what });
    }
    let tensors = compared.len();
    let worst = compared.into_iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio()));
    let worst = worst.expect("a decoder has tensors");
    if worst.ratio() > 1.0 {
        let worst = worst.into();
        return Err(Unlike::Differs { path: post.to_owned(), folder: folder.to_owned(), worst });
    }
    Ok(Kin { folder: hasher.finish(), post: file.content_hash()?, tensors, worst })
}

/// The tensors of the file that a tensor of the folder must agree with. If only one of the two has
/// an output matrix and the other ties it to the embedding, the matrix is compared with the
/// embedding, which is what the other computes with.
fn counterparts<'a>(file: &Gguf, config: &DecoderConfig, name: &'a str) -> Vec<&'a str> {
    const OUTPUT: &str = "output.weight";
    const EMBEDDING: &str = "token_embd.weight";
    match name {
        EMBEDDING if config.tied && file.tensor(OUTPUT).is_some() => vec![EMBEDDING, OUTPUT],
        OUTPUT if file.tensor(OUTPUT).is_none() => vec![EMBEDDING],
        _ => vec![name],
    }
}

/// Compares what no tensor shows: numbers of heads, the rotary base, epsilon, windows.
fn check_constants(folder: &Path, config: &DecoderConfig, file: &Gguf) -> Result<(), Unlike> {
    let differ = |key: String, found: String, expected: String| Unlike::Constant {
        path: file.path().to_owned(),
        folder: folder.to_owned(),
        key,
        found,
        expected,
    };
    let (found, wanted) = (file.get::<&str>("general.architecture")?, architecture(config.family));
    if found != wanted {
        return Err(differ("general.architecture".to_owned(), format!("{found:?}"), format!("{wanted:?}")));
    }
    let mut theirs = read_config(file)?;
    // The declared context length and a copy of the embedding don't change any weight.
    (theirs.max_position, theirs.tied) = (config.max_position, config.tied);
    let tree = |config: &DecoderConfig| serde_json::to_value(config).unwrap_or_default();
    match difference("", &tree(&theirs), &tree(config)) {
        Some((key, found, expected)) => Err(differ(key, found, expected)),
        None => Ok(()),
    }
}

/// The first difference between two trees; numbers are compared as f32.
fn difference(at: &str, a: &Value, b: &Value) -> Option<(String, String, String)> {
    let under = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match (a, b) {
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => a
            .iter()
            .find_map(|(key, value)| difference(&under(key), value, b.get(key).unwrap_or(&Value::Null))),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(n, (a, b))| difference(&under(&n.to_string()), a, b))
        }
        (Value::Number(x), Value::Number(y)) if x.as_f64().zip(y.as_f64()).is_some_and(is_close) => None,
        _ if a == b => None,
        _ => Some((at.to_owned(), a.to_string(), b.to_string())),
    }
}

fn is_close((a, b): (f64, f64)) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
}

/// Compares one tensor, a part at a time. `theirs` are the folder's values in llama.cpp's order.
fn agreement(file: &Gguf, name: &str, dims: &[u64], theirs: &[f32]) -> Result<Agreement, Unlike> {
    let alone = |what: String| Unlike::Alone { path: file.path().to_owned(), tensor: name.to_owned(), what };
    let stored = file
        .tensor(name)
        .ok_or_else(|| alone("is in the folder and not in the file: it can't be compared".to_owned()))?;
    if stored.dims != dims {
        return Err(alone(format!("has dimensions {:?}, and the folder's has {dims:?}", stored.dims)));
    }
    let bound = explained(stored.kind).ok_or_else(|| {
        alone(format!("is of type {}, of which it isn't known how far it may be off", stored.kind))
    })?;
    let mut meter = Meter::new(theirs, dims[0] as usize);
    file.scan_f32(stored, |part| {
        meter.see(part);
        Ok::<_, GgufError>(())
    })?;
    let (whole, (row, error)) = meter.errors();
    let of = |found: f64, bound: f64, row: Option<u64>| Agreement {
        tensor: name.to_owned(),
        kind: stored.kind.to_string(),
        found,
        bound,
        row,
    };
    let (whole, row) = (of(whole, bound, None), of(error, ROW * bound, Some(row)));
    Ok(if row.ratio() > whole.ratio() { row } else { whole })
}

/// Accumulates errors of a tensor that is read in parts.
struct Meter<'a> {
    theirs: &'a [f32],
    width: usize,
    /// Mean square of all values.
    mean: f64,
    at: usize,
    total: f64,
    /// The same for the row being read.
    row: f64,
    /// The worst row, and its error relative to its size, squared.
    worst: (usize, f64),
}

impl<'a> Meter<'a> {
    fn new(theirs: &'a [f32], width: usize) -> Self {
        let mean = squares(theirs) / theirs.len().max(1) as f64;
        Self { theirs, width: width.max(1), mean, at: 0, total: 0.0, row: 0.0, worst: (0, 0.0) }
    }

    fn see(&mut self, part: &[f32]) {
        for &value in part {
            let difference = f64::from(value) - f64::from(self.theirs[self.at]);
            self.row += difference * difference;
            self.at += 1;
            if self.at.is_multiple_of(self.width) {
                self.end_row();
            }
        }
    }

    fn end_row(&mut self) {
        let values = &self.theirs[self.at - self.width..self.at];
        let size = (squares(values) / self.width as f64).max(FAINT * FAINT * self.mean);
        let error = relative(self.row / self.width as f64, size);
        // NaN counts as the worst error.
        if error.is_nan() || error > self.worst.1 {
            self.worst = (self.at / self.width - 1, if error.is_nan() { f64::INFINITY } else { error });
        }
        self.total += self.row;
        self.row = 0.0;
    }

    /// Relative root mean square errors of the whole tensor and of the worst row.
    fn errors(&self) -> (f64, (u64, f64)) {
        let whole = relative(self.total / self.theirs.len().max(1) as f64, self.mean);
        (whole.sqrt(), (self.worst.0 as u64, self.worst.1.sqrt()))
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

/// An error relative to a size, both squared. If the size is 0, any error is infinite.
fn relative(error: f64, size: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / size }
}

#[cfg(test)]
mod tests;
