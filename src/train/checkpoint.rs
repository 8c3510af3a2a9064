//! Checkpoints: one folder per step, complete or absent, from which a run continues bit for bit.
//!
//! `weights.safetensors`, `averaged.safetensors` (with `train.ema`), `moments.safetensors`, `recipe.toml`, `state.json`, and
//! last `manifest.json`, the SHA-256 of each of the others. The folder gets its name only when all are on disk.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};

use super::TrainError;
use super::recipe::Recipe;
use crate::durable;

/// Older checkpoints that are kept beside the best.
const KEEP: usize = 3;

/// What a run has to remember beside tensors.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// Steps taken.
    pub step: u64,
    /// Tokens read, padding aside.
    pub tokens: u64,
    /// Seconds of training, over all sittings.
    pub seconds: f64,
    /// Best held-out loss so far and its step.
    pub best: Option<(f64, u64)>,
}

/// A checkpoint in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where the run is.
    pub state: State,
    /// Parameters, by name.
    pub weights: Tensors,
    /// Averaged parameters, if the recipe wants them.
    pub averaged: Option<Tensors>,
    /// Optimiser state, by name.
    pub moments: Tensors,
}

/// Tensors by name.
pub type Tensors = HashMap<String, Tensor>;

/// Tensors as the bytes of a safetensors file, f32, sorted by name.
///
/// # Errors
/// Tensors that can't be read.
pub fn to_safetensors(tensors: &Tensors) -> Result<Vec<u8>, TrainError> {
    let sorted: BTreeMap<&String, &Tensor> = tensors.iter().collect();
    let mut data = Vec::with_capacity(sorted.len());
    for (name, tensor) in sorted {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        data.push((name, tensor.dims().to_vec(), bytes));
    }
    let views = data.iter().map(|(name, dims, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, dims.clone(), bytes);
        (*name, view.expect("shape and bytes come from one tensor"))
    });
    // The format's metadata tells transformers which library's tensors these are.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata));
    Ok(bytes.expect("names are unique and shapes fit"))
}

impl Checkpoint {
    /// Writes `folder/<step>/` and removes what is no longer needed.
    ///
    /// # Errors
    /// A folder that can't be written.
    pub fn save(&self, folder: &Path, recipe: &Recipe) -> Result<PathBuf, TrainError> {
        let target = folder.join(self.state.step.to_string());
        let temporary = folder.join(format!(".{}.tmp", self.state.step));
        if temporary.exists() {
            fs_err::remove_dir_all(&temporary).map_err(TrainError::file(&temporary))?;
        }
        let mut files = vec![
            ("weights.safetensors", to_safetensors(&self.weights)?),
            ("moments.safetensors", to_safetensors(&self.moments)?),
            ("recipe.toml", recipe.to_toml().into_bytes()),
            ("state.json", serde_json::to_vec_pretty(&self.state).expect("numbers have a JSON form")),
        ];
        if let Some(averaged) = &self.averaged {
            files.push(("averaged.safetensors", to_safetensors(averaged)?));
        }
        let hashes: BTreeMap<&str, String> =
            files.iter().map(|(name, bytes)| (*name, sha256(bytes))).collect();
        files.push(("manifest.json", serde_json::to_vec_pretty(&hashes).expect("strings have a JSON form")));
        for (name, bytes) in files {
            let path = temporary.join(name);
            durable::write(&path, &bytes).map_err(TrainError::file(path))?;
        }
        durable::rename_folder(&temporary, &target).map_err(TrainError::file(&target))?;
        self.prune(folder)?;
        Ok(target)
    }

    /// Removes all but the newest and the best.
    fn prune(&self, folder: &Path) -> Result<(), TrainError> {
        for step in steps(folder)?.into_iter().rev().skip(KEEP) {
            if self.state.best.is_none_or(|(_, best)| best != step) {
                let path = folder.join(step.to_string());
                fs_err::remove_dir_all(&path).map_err(TrainError::file(&path))?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint of a run, or none.
    ///
    /// # Errors
    /// A newest checkpoint whose files are not what its manifest says, or that another recipe made.
    pub fn newest(folder: &Path, recipe: &Recipe) -> Result<Option<Self>, TrainError> {
        match steps(folder)?.last() {
            Some(step) => Self::load(&folder.join(step.to_string()), recipe).map(Some),
            None => Ok(None),
        }
    }

    /// Reads a checkpoint and checks every hash.
    ///
    /// # Errors
    /// As [`Checkpoint::newest`].
    pub fn load(folder: &Path, recipe: &Recipe) -> Result<Self, TrainError> {
        let wrong = |message: String| TrainError::Checkpoint { path: folder.to_owned(), message };
        let read = |name: &str| {
            let path = folder.join(name);
            fs_err::read(&path).map_err(TrainError::file(path))
        };
        let json = |name: &str, e: serde_json::Error| wrong(format!("{name}: {e}"));
        let manifest: BTreeMap<String, String> =
            serde_json::from_slice(&read("manifest.json")?).map_err(|e| json("manifest.json", e))?;
        let mut files = HashMap::new();
        for (name, expected) in &manifest {
            let bytes = read(name)?;
            let found = sha256(&bytes);
            if found != *expected {
                return Err(wrong(format!("{name} has SHA-256 {found}, the manifest says {expected}")));
            }
            files.insert(name.as_str(), bytes);
        }
        let file = |name: &str| files.get(name).ok_or_else(|| wrong(format!("the manifest lacks {name}")));
        let text = String::from_utf8_lossy(file("recipe.toml")?).into_owned();
        let saved: Recipe = toml::from_str(&text).map_err(|e| wrong(format!("recipe.toml: {e}")))?;
        if let Some(difference) = difference(&saved, recipe) {
            return Err(wrong(difference));
        }
        let tensors = |name: &str| -> Result<_, TrainError> {
            Ok(candle_core::safetensors::load_buffer(file(name)?, &Device::Cpu)?)
        };
        Ok(Self {
            state: serde_json::from_slice(file("state.json")?).map_err(|e| json("state.json", e))?,
            weights: tensors("weights.safetensors")?,
            moments: tensors("moments.safetensors")?,
            averaged: (recipe.train.ema > 0.0).then(|| tensors("averaged.safetensors")).transpose()?,
        })
    }
}

/// Steps that have a checkpoint, ascending.
fn steps(folder: &Path) -> Result<Vec<u64>, TrainError> {
    if !folder.exists() {
        return Ok(vec![]);
    }
    let mut steps = Vec::new();
    for entry in fs_err::read_dir(folder).map_err(TrainError::file(folder))? {
        let entry = entry.map_err(TrainError::file(folder))?;
        steps.extend(entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// How a recipe differs from that of a checkpoint in a way that a continued run may not.
fn difference(saved: &Recipe, now: &Recipe) -> Option<String> {
    let mut aligned = saved.clone();
    // These change how long and how visibly a run trains, not what a step does to the weights (but for the schedule,
    // which a longer run stretches on purpose).
    aligned.train.steps = now.train.steps;
    aligned.train.checkpoint_every = now.train.checkpoint_every;
    aligned.train.eval_every = now.train.eval_every;
    aligned.train.threads = now.train.threads;
    aligned.data.eval_rows = now.data.eval_rows;
    if aligned == *now {
        return None;
    }
    let (saved, now) = (aligned.to_toml(), now.to_toml());
    let lines = saved.lines().zip(now.lines()).find(|(a, b)| a != b);
    let (a, b) = lines.unwrap_or(("fewer or more keys", "fewer or more keys"));
    Some(format!("made by another recipe: it has `{a}`, the recipe now has `{b}`"))
}

fn sha256(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}"); // a String takes every text
    }
    text
}
