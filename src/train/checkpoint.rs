//! Checkpoints: one folder per step, complete or absent, from which a run continues bit for bit.
//!
//! `weights.safetensors` (what is trained), `averaged.safetensors` (with `train.ema`),
//! `moments.safetensors`, `recipe.toml`, `state.json`, and last `manifest.json`, the SHA-256 of
//! each of the others. The folder gets its name only when all files are on disk; older checkpoints
//! stay until then.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};

use super::TrainError;
use super::data::Position;
use super::recipe::Recipe;
use crate::atomic_file;
use crate::digest::Digest;
use crate::failpoints;
use crate::model::Parameters;
use crate::model::safetensors_file::{F32View, write_views};

/// Number of newest checkpoints that are kept, in addition to the best.
const KEEP: usize = 3;
const WEIGHTS: &str = "weights.safetensors";
const AVERAGED: &str = "averaged.safetensors";
const MOMENTS: &str = "moments.safetensors";
const STATE: &str = "state.json";
const RECIPE: &str = "recipe.toml";
const MANIFEST: &str = "manifest.json";

/// What a run has to remember in addition to tensors. All random numbers follow from seed and step,
/// the order of the data from the seed and the position that is kept here.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps taken.
    pub step: u64,
    /// Seed of every random number.
    pub seed: u64,
    /// Tokens read, excluding padding.
    pub tokens: u64,
    /// Weights of the domains, in the order of their names.
    pub weights: Vec<Exact>,
    /// Best held-out loss so far and its step.
    pub best: Option<(Exact, u64)>,
    /// Evaluations since held-out loss last fell by `train.stop.least`.
    pub waiting: u64,
    /// Held-out loss that the next one is compared with for early stopping.
    pub mark: Option<Exact>,
    /// Whether early stopping has ended the run.
    pub stopped: bool,
    /// Hash of the tensors of the base, if there is one.
    pub base: Option<Digest>,
    /// Hash of the tokenizer and the chat template.
    pub tokens_of: Digest,
    /// Hashes of what is read, by key of the recipe: rows of files, a local or cached teacher. Old
    /// checkpoints don't have them and are refused, because it is unknown what they learnt from.
    #[serde(default)]
    pub read: Option<BTreeMap<String, Digest>>,
    /// Where the data goes on. A checkpoint of before it was kept has the beginning.
    #[serde(default)]
    pub data: Position,
    /// Where the last step was computed, and in which type. None in a checkpoint of before it was
    /// kept.
    #[serde(default)]
    pub place: Option<String>,
}

/// A number that survives JSON bit for bit: it is stored as text, because parsing a JSON number
/// may change its last digit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Exact(pub f64);

impl serde::Serialize for Exact {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Rust prints the shortest text that parses to the same number.
        serializer.collect_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Exact {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// A checkpoint in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// The state of the run.
    pub state: State,
    /// The trained parameters, by name.
    pub weights: Tensors,
    /// Their averages, if the recipe wants them.
    pub averaged: Option<Tensors>,
    /// Optimiser state, by name.
    pub moments: Tensors,
}

/// Tensors by name.
pub type Tensors = HashMap<String, Tensor>;

impl Checkpoint {
    /// Writes `folder/<step>/` and removes what is no longer needed.
    ///
    /// # Errors
    /// A folder that can't be written; then nothing of this checkpoint remains, and older ones are
    /// untouched.
    pub fn save(&self, folder: &Path, recipe: &Recipe) -> Result<PathBuf, TrainError> {
        let target = folder.join(self.state.step.to_string());
        let temporary = folder.join(format!(".{}.tmp", self.state.step));
        remove(&temporary)?;
        let step = self.state.step.to_string();
        let written = self.write(&temporary, recipe).and_then(|()| {
            failpoints::point("checkpoint.written", &step);
            atomic_file::rename_folder(&temporary, &target).map_err(TrainError::file(&target))
        });
        if let Err(error) = written {
            // The cause may prevent the removal too; the next start removes the rest.
            let _ = remove(&temporary);
            return Err(error);
        }
        failpoints::point("checkpoint.named", &step);
        retain(folder)?;
        Ok(target)
    }

    fn write(&self, folder: &Path, recipe: &Recipe) -> Result<(), TrainError> {
        let mut manifest = BTreeMap::new();
        let tensors = [
            (WEIGHTS, Some(&self.weights)),
            (MOMENTS, Some(&self.moments)),
            (AVERAGED, self.averaged.as_ref()),
        ];
        for (name, tensors) in tensors.into_iter().filter_map(|(name, tensors)| Some((name, tensors?))) {
            manifest.insert(name, write_tensors(&folder.join(name), tensors)?);
        }
        let state = serde_json::to_vec_pretty(&self.state).expect("finite numbers have a JSON form");
        for (name, bytes) in [(RECIPE, recipe.to_toml().into_bytes()), (STATE, state)] {
            let path = folder.join(name);
            atomic_file::write(&path, &bytes).map_err(TrainError::file(&path))?;
            manifest.insert(name, hash(&path)?);
        }
        let path = folder.join(MANIFEST);
        let bytes = serde_json::to_vec_pretty(&manifest).expect("strings have a JSON form");
        atomic_file::write(&path, &bytes).map_err(TrainError::file(path))
    }

    /// The newest checkpoint of a run, if there is one. Unfinished remains of a killed run are
    /// removed.
    ///
    /// # Errors
    /// The newest checkpoint doesn't match its manifest, or another recipe made it.
    pub fn newest(folder: &Path, recipe: &Recipe) -> Result<Option<Self>, TrainError> {
        if folder.exists() {
            for entry in fs_err::read_dir(folder).map_err(TrainError::file(folder))? {
                let path = entry.map_err(TrainError::file(folder))?.path();
                if path.extension().is_some_and(|end| end == "tmp") {
                    remove(&path)?;
                }
            }
        }
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
        let manifest: BTreeMap<String, Digest> =
            serde_json::from_slice(&read(MANIFEST)?).map_err(|e| json(MANIFEST, e))?;
        for (name, expected) in &manifest {
            let found = hash(&folder.join(name))?;
            if found != *expected {
                return Err(wrong(format!("{name} has SHA-256 {found}, the manifest says {expected}")));
            }
        }
        let mut expected = vec![WEIGHTS, MOMENTS, RECIPE, STATE];
        expected.extend((recipe.train.ema > 0.0).then_some(AVERAGED));
        if let Some(missing) = expected.iter().find(|name| !manifest.contains_key(**name)) {
            return Err(wrong(format!("the manifest lacks {missing}")));
        }
        if let Some((saved, now)) = difference(&saved_recipe(folder)?, recipe) {
            return Err(TrainError::OtherRecipe { path: folder.to_owned(), saved, now });
        }
        let tensors = |name: &str| -> Result<_, TrainError> {
            candle_core::safetensors::load(folder.join(name), &Device::Cpu)
                .map_err(|e| wrong(format!("{name}: {e}")))
        };
        Ok(Self {
            state: serde_json::from_slice(&read(STATE)?).map_err(|e| json(STATE, e))?,
            weights: tensors(WEIGHTS)?,
            moments: tensors(MOMENTS)?,
            averaged: (recipe.train.ema > 0.0).then(|| tensors(AVERAGED)).transpose()?,
        })
    }
}

/// Overwrites parameters with saved values; `path` is that of the checkpoint, for errors.
///
/// # Errors
/// A tensor that is missing, extra, or of the wrong shape or type; then nothing is overwritten.
pub fn restore(parameters: &Parameters, saved: &Tensors, path: &Path) -> Result<(), TrainError> {
    let expected: Vec<(String, &Var)> = parameters.iter().map(|(name, var)| (name.to_owned(), var)).collect();
    check(expected.iter().map(|(name, var)| (name.as_str(), var.as_tensor())), saved, path)?;
    for (name, var) in expected {
        var.set(&saved[&name].to_device(var.device())?)?;
    }
    Ok(())
}

/// Compares saved tensors with those that they will replace.
///
/// # Errors
/// The first tensor that is missing, extra, or of the wrong shape or type.
pub fn check<'a>(
    expected: impl Iterator<Item = (&'a str, &'a Tensor)>,
    saved: &Tensors,
    path: &Path,
) -> Result<(), TrainError> {
    let wrong = |message: String| Err(TrainError::Checkpoint { path: path.to_owned(), message });
    let mut rest: BTreeMap<&str, &Tensor> =
        saved.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    for (name, tensor) in expected {
        let Some(found) = rest.remove(name) else {
            return wrong(format!("tensor {name:?} is missing, expected shape {:?}", tensor.dims()));
        };
        let (shape, dtype) = (tensor.dims(), tensor.dtype());
        if (found.dims(), found.dtype()) != (shape, dtype) {
            let (found_shape, found_dtype) = (found.dims(), found.dtype());
            return wrong(format!(
                "tensor {name:?} is {found_dtype:?} {found_shape:?}, expected {dtype:?} {shape:?}"
            ));
        }
    }
    match rest.keys().next() {
        Some(extra) => wrong(format!("tensor {extra:?} is not one that this run trains")),
        None => Ok(()),
    }
}

/// Writes tensors as f32, sorted by name; returns the hash of the file.
fn write_tensors(path: &Path, tensors: &Tensors) -> Result<Digest, TrainError> {
    let views: BTreeMap<&String, F32View> =
        tensors.iter().map(|(name, tensor)| (name, F32View(tensor))).collect();
    // transformers requires the framework in the metadata.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_views(path, views, metadata)?;
    hash(path)
}

fn hash(path: &Path) -> Result<Digest, TrainError> {
    let file = fs_err::File::open(path).map_err(TrainError::file(path))?;
    Digest::of_reader(file).map_err(TrainError::file(path))
}

fn remove(folder: &Path) -> Result<(), TrainError> {
    match fs_err::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(TrainError::file(folder)(error)),
        _ => Ok(()),
    }
}

/// Removes all but the newest checkpoints and those that one of them names as the best, which a
/// run that resumes from it may need.
fn retain(folder: &Path) -> Result<(), TrainError> {
    let newest_first: Vec<u64> = steps(folder)?.into_iter().rev().collect();
    let (kept, rest) = newest_first.split_at(KEEP.min(newest_first.len()));
    let best: Vec<u64> = kept.iter().filter_map(|step| best_of(&folder.join(step.to_string()))).collect();
    for step in rest.iter().filter(|step| !best.contains(step)) {
        remove(&folder.join(step.to_string()))?;
    }
    Ok(())
}

/// The best step according to a checkpoint; `None` for one that can't be read, from which no run
/// can resume.
fn best_of(folder: &Path) -> Option<u64> {
    let state: State = serde_json::from_slice(&fs_err::read(folder.join(STATE)).ok()?).ok()?;
    state.best.map(|(_, step)| step)
}

/// Steps that have a checkpoint, ascending.
///
/// # Errors
/// A folder that can't be read.
pub fn steps(folder: &Path) -> Result<Vec<u64>, TrainError> {
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

/// The recipe that made a checkpoint.
fn saved_recipe(folder: &Path) -> Result<Recipe, TrainError> {
    let path = folder.join(RECIPE);
    let text = fs_err::read_to_string(&path).map_err(TrainError::file(&path))?;
    toml::from_str(&text)
        .map_err(|e| TrainError::Checkpoint { path: folder.to_owned(), message: format!("{RECIPE}: {e}") })
}

/// What a person may change for the remaining steps: rates, if a run diverged, and the tokens of a
/// part, for another device's memory. Key, value in the checkpoint, value now; none where a recipe
/// does not set it.
///
/// # Errors
/// A recipe in the checkpoint that can't be read.
pub fn changed(folder: &Path, now: &Recipe) -> Result<Vec<Change>, TrainError> {
    let pairs = changeable(&saved_recipe(folder)?).into_iter().zip(changeable(now));
    let all = pairs.map(|((key, saved), (_, now))| (key, saved, now));
    Ok(all.filter(|(_, saved, now)| saved.map(f64::to_bits) != now.map(f64::to_bits)).collect())
}

/// Key, value in the checkpoint, value now.
pub type Change = (&'static str, Option<f64>, Option<f64>);

/// The key of what decides in which parts gradients are summed.
pub const MICRO_TOKENS: &str = "train.micro_tokens";

fn changeable(recipe: &Recipe) -> [(&'static str, Option<f64>); 9] {
    let train = &recipe.train;
    let adamw = train.adamw;
    [
        ("train.muon.lr", Some(train.muon.lr)),
        ("train.adamw.lr", Some(adamw.lr)),
        ("train.adamw.matrix_lr", adamw.matrix_lr),
        ("train.adamw.embedding_lr", adamw.embedding_lr),
        ("train.adamw.vector_lr", adamw.vector_lr),
        ("train.warmup", Some(train.warmup)),
        ("train.floor", Some(train.floor)),
        ("train.clip", Some(train.clip)),
        (MICRO_TOKENS, Some(train.micro_tokens as f64)),
    ]
}

/// The first line of both recipes that differs in a way that a resumed run may not.
fn difference(saved: &Recipe, now: &Recipe) -> Option<(String, String)> {
    let mut aligned = saved.clone();
    // These change how long and how visibly a run trains, not what a step does to the weights
    // (except for the schedule, which a longer run stretches on purpose).
    aligned.train.steps = now.train.steps;
    aligned.train.checkpoint_every = now.train.checkpoint_every;
    aligned.train.metrics_every = now.train.metrics_every;
    aligned.train.threads = now.train.threads;
    aligned.train.device = now.train.device;
    aligned.train.precision = now.train.precision;
    aligned.train.recompute = now.train.recompute;
    // What fits one device's memory may not fit another's. It is said when it changes.
    aligned.train.micro_tokens = now.train.micro_tokens;
    aligned.train.max_loss = now.train.max_loss;
    aligned.data.cache.clone_from(&now.data.cache);
    // These may help a run that diverged; changes are reported.
    aligned.train.muon.lr = now.train.muon.lr;
    let (adamw, rates) = (&mut aligned.train.adamw, now.train.adamw);
    adamw.lr = rates.lr;
    adamw.matrix_lr = rates.matrix_lr;
    adamw.embedding_lr = rates.embedding_lr;
    adamw.vector_lr = rates.vector_lr;
    aligned.train.warmup = now.train.warmup;
    aligned.train.floor = now.train.floor;
    aligned.train.clip = now.train.clip;
    // The evaluation determines which weights are the best, when the run stops, and the weights of
    // domains.
    if now.train.stop.is_none() && now.data.loading.is_none() {
        aligned.train.eval_every = now.train.eval_every;
        aligned.data.eval_rows = now.data.eval_rows;
    }
    if aligned == *now {
        return None;
    }
    let (saved, now) = (aligned.to_toml(), now.to_toml());
    let lines = saved.lines().zip(now.lines()).find(|(a, b)| a != b);
    let (a, b) = lines.unwrap_or(("fewer or more keys", "fewer or more keys"));
    Some((a.to_owned(), b.to_owned()))
}
