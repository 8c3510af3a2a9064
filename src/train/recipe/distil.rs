//! `[distil]`: a teacher whose distributions and hidden states are learnt in addition to the data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Exactly one of `teacher`, `endpoint` and `stored`. Loss = `kl` tau^2 KL(teacher ‖ student) +
/// `ce` CE + hidden states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistilRecipe {
    /// A local model: a GGUF file or a Hugging Face folder with the student's tokenizer.
    pub teacher: Option<PathBuf>,
    /// A server that answers `/completion` with `n_probs`: llama-server, or this program's own.
    pub endpoint: Option<String>,
    /// A folder that `bespoke data distil` wrote.
    pub stored: Option<PathBuf>,
    /// Temperature tau.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Weight of the divergence.
    #[serde(default = "one")]
    pub kl: f64,
    /// Weight of the cross-entropy with the data.
    #[serde(default = "default_ce")]
    pub ce: f64,
    /// Number of most likely tokens that are requested from a remote teacher or cached of any
    /// teacher.
    #[serde(default = "default_top")]
    pub top: usize,
    /// Hidden states of a local teacher.
    pub hidden: Option<HiddenRecipe>,
}

/// `[distil.hidden]`: weight times the mean of 1 - cos(map(student), teacher) over pairs of blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HiddenRecipe {
    /// Weight.
    pub weight: f64,
    /// Pairs of blocks whose outputs are compared: `[student's, teacher's]`, from 0.
    pub layers: Vec<[usize; 2]>,
}

fn one() -> f64 {
    1.0
}
fn default_ce() -> f64 {
    0.1
}
fn default_top() -> usize {
    64
}
