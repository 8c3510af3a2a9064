//! `[data]`: the training data.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// Sources of rows, by name.
    pub domains: BTreeMap<String, DomainRecipe>,
    /// Adjusts the weights of domains by their losses.
    pub loading: Option<LoadingRecipe>,
    /// Held-out rows of each domain per evaluation.
    #[serde(default = "default_eval_rows")]
    pub eval_rows: usize,
    /// A `tokenizer.json`; by default that of the base, or else a vocabulary that is first trained
    /// on the data.
    pub tokenizer: Option<PathBuf>,
    /// Entries of the vocabulary that is trained.
    #[serde(default = "default_vocabulary")]
    pub vocabulary: usize,
    /// Rows that it is trained on.
    #[serde(default = "default_vocabulary_rows")]
    pub vocabulary_rows: u64,
    /// Folder of tokenised files; by default `cache/` in the folder of the run.
    pub cache: Option<PathBuf>,
    /// What becomes of a row longer than `seq_len`. A text is cut, and is never too long.
    #[serde(default)]
    pub long_rows: LongRows,
    /// Curriculum: each stage lasts until its step, the last one until the end.
    #[serde(default)]
    pub stages: Vec<StageRecipe>,
}

/// `[data.domains.NAME]`: exactly one of `generator` and `train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainRecipe {
    /// Share of the rows, relative to the other domains.
    #[serde(default = "one")]
    pub weight: f64,
    /// Endless generated rows of a task.
    pub generator: Option<GeneratorName>,
    /// Seed of the generator.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// JSONL files. Each row has `messages`, or `prompt` and `completion`, or `text`.
    #[serde(default)]
    pub train: Vec<PathBuf>,
    /// Held-out JSONL files.
    #[serde(default)]
    pub eval: Vec<PathBuf>,
    /// Loss that the domain should reach, for `[data.loading]`: that of the teacher, or of a model
    /// of the same size.
    pub reference_loss: Option<f64>,
}

/// Tasks whose rows can be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GeneratorName {
    /// An event becomes a memory.
    Encoding,
    /// Memories of an episode become its summary.
    Synthesis,
    /// A question is answered from memories.
    Retrieval,
}

/// `[data.loading]`: dynamic batch loading (Xia et al. 2023, algorithm 1).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadingRecipe {
    /// Evaluations between two updates of the weights.
    #[serde(default = "one_evaluation")]
    pub every: u64,
    /// Step size eta.
    #[serde(default = "one")]
    pub eta: f64,
    /// Share c of the weights that is distributed evenly.
    #[serde(default = "default_smoothing")]
    pub c: f64,
    /// Whether a domain that is better than its reference counts as equal to it (as in the paper;
    /// its code differs).
    #[serde(default)]
    pub clip: bool,
}

/// What happens to a row longer than a packed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongRows {
    /// It is skipped and counted.
    #[default]
    Skip,
    /// It ends the run.
    Error,
}

/// `[[data.stages]]`: missing values are those of `[train]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecipe {
    /// Last step of the stage; the last stage has none.
    pub until_step: Option<u64>,
    /// Longest event that a generator makes, in characters.
    pub max_event_chars: Option<usize>,
    /// Tokens per packed row.
    pub seq_len: Option<usize>,
    /// Packed rows per step.
    pub batch: Option<usize>,
}

/// A stage with all values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Last step.
    pub until_step: u64,
    /// Longest event, if limited.
    pub max_event_chars: Option<usize>,
    /// Tokens per packed row.
    pub seq_len: usize,
    /// Packed rows per step.
    pub batch: usize,
}

fn one() -> f64 {
    1.0
}
fn one_evaluation() -> u64 {
    1
}
fn default_seed() -> u64 {
    1
}
fn default_smoothing() -> f64 {
    1e-4
}
fn default_eval_rows() -> usize {
    64
}
fn default_vocabulary() -> usize {
    4096
}
fn default_vocabulary_rows() -> u64 {
    20_000
}
