//! Training: recipe -> data -> gradients -> optimiser -> checkpoints, in a run that tells an
//! observer what happens (`run/`, `observer.rs`).

pub mod adapter;
pub mod base;
pub mod batch;
pub mod checkpoint;
pub mod clip;
pub mod cost;
pub mod data;
pub mod distil;
pub mod evaluate;
pub mod gradient;
pub mod heatmap;
mod in_place;
pub mod log;
pub mod loss_curve;
pub mod method;
pub mod metrics;
pub mod objective;
pub mod observer;
pub mod optimiser;
mod prefetch;
mod prepare;
pub mod recipe;
pub mod run;
pub mod schedule;
pub mod vocabulary;

#[cfg(test)]
mod frozen_tests;
#[cfg(test)]
mod packing_tests;
#[cfg(test)]
mod precision_tests;
#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod resume_tests;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

/// Why a training run can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe is wrong: every mistake, one per line.
    #[error("{path}: {}", .mistakes.join("\n  "))]
    Recipe {
        /// The recipe file.
        path: PathBuf,
        /// What is wrong, each naming its key.
        mistakes: Vec<String>,
    },
    /// A model's files can't be read or written.
    #[error(transparent)]
    Model(#[from] crate::model::FileError),
    /// The base can't be used.
    #[error("base {path}: {message}")]
    Base {
        /// The file or folder.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// The loss of the base is too high for a trained model.
    #[error("base {path}: {message}")]
    Reference {
        /// The file or folder.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// The output folder holds another run.
    #[error("{path} has checkpoints up to step {step}")]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// The step of the newest checkpoint.
        step: u64,
    },
    /// Another process is writing to the output folder.
    #[error("{path}: another process is writing there")]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// A row of training data can't be used.
    #[error("{place}: {message}")]
    Row {
        /// File and line, or generator and index.
        place: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A domain has no usable held-out row.
    #[error(
        "data.domains.{domain}: {too_long} of {rows} held-out rows are longer than seq_len, {seq_len}; expected at least \
         one with an answer that fits"
    )]
    HeldOut {
        /// The domain's name.
        domain: String,
        /// Rows that are too long.
        too_long: usize,
        /// All rows that were read.
        rows: usize,
        /// Tokens of a packed row.
        seq_len: usize,
    },
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A checkpoint that another recipe made.
    #[error("checkpoint {path}: made by another recipe: it has `{saved}`, the recipe now has `{now}`")]
    OtherRecipe {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The first line that differs.
        saved: String,
        /// What the recipe says instead.
        now: String,
    },
    /// A checkpoint made with another base, tokenizer, or other data.
    #[error("checkpoint {path}: made with another {what}: SHA-256 {saved}, now {now}")]
    Foreign {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What differs.
        what: String,
        /// The hash in the checkpoint, or `none`.
        saved: String,
        /// The hash now, or `none`.
        now: String,
    },
    /// A checkpoint is not what its manifest says.
    #[error("checkpoint {path}: {message}")]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// A teacher gave no usable answer.
    #[error("teacher {endpoint}: {message}")]
    Teacher {
        /// Its address or file.
        endpoint: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A loss or gradient is not finite; the last checkpoint is intact.
    #[error("step {step}: {what} {loss}, gradient norm {norm}: not finite")]
    NotFinite {
        /// The step that failed.
        step: u64,
        /// Which loss: that of the step, or the held-out loss after it.
        what: &'static str,
        /// That loss.
        loss: f64,
        /// Its gradient norm.
        norm: f64,
    },
    /// The loss is above its bound; the last checkpoint is intact.
    #[error("step {step}: loss {loss:.4} is above train.max_loss, {bound}")]
    AboveBound {
        /// The step that failed.
        step: u64,
        /// Its loss.
        loss: f64,
        /// The bound.
        bound: f64,
    },
    /// The device that the recipe names can't be used.
    #[error("train.device is \"cuda\": {0}")]
    Device(#[from] crate::device::NoGpu),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] crate::text::tokenizer::TokenizerError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Occupied { .. } => {
                Some("continue with --resume, choose another folder with --out, or remove this one")
            }
            Self::Busy { .. } => Some("wait until it has ended, or choose another folder with --out"),
            Self::HeldOut { .. } => Some("raise train.seq_len, or use shorter rows in that domain's eval"),
            Self::NotFinite { .. } | Self::AboveBound { .. } => Some(
                "lower the learning rates (train.muon.lr, train.adamw.lr and those of its groups) or train.clip, or lengthen train.warmup; \
                 the last checkpoint is intact: --resume continues from it with these changed",
            ),
            Self::OtherRecipe { .. } => Some(
                "resume with the recipe that began the run, or begin a new one in another folder with --out",
            ),
            Self::Foreign { .. } => Some(
                "begin a new run in another folder with --out, or restore what the checkpoint was made with",
            ),
            Self::Checkpoint { .. } => {
                Some("remove this checkpoint: --resume then continues from the one before it")
            }
            Self::File { source, .. } | Self::Model(crate::model::FileError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::StorageFull =>
            {
                Some("make room and continue with --resume: what was saved before is intact")
            }
            Self::Reference { .. } => Some(
                "base.reference and base.reference_bound choose another text and bound; \
                 `bespoke export` checks a model against llama.cpp",
            ),
            Self::Device(_) => Some(
                "`make cuda` builds a program that trains on an NVIDIA GPU; train.device = \"auto\" uses the CPU if there is \
                 none",
            ),
            Self::Model(error) => error.hint(),
            _ => None,
        }
    }

    /// Adds a path to an I/O error.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
