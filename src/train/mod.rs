//! Training: recipe -> data -> gradients -> optimiser -> checkpoints, in a loop that reads top to bottom (`loop.rs`).

pub mod batch;
pub mod checkpoint;
pub mod clip;
pub mod curve;
pub mod evaluate;
pub mod gradient;
mod in_place;
pub mod log;
pub mod r#loop;
pub mod optimiser;
pub mod recipe;
pub mod schedule;
pub mod source;
pub mod vocabulary;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

/// Why a training run can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe is wrong: every mistake, one a line.
    #[error("{path}: {}", .mistakes.join("\n  "))]
    Recipe {
        /// The recipe file.
        path: PathBuf,
        /// What is wrong, each naming its key.
        mistakes: Vec<String>,
    },
    /// The model's folder can't be written.
    #[error(transparent)]
    Folder(#[from] crate::model::FileError),
    /// A row of training data can't be used.
    #[error("{place}: {message}")]
    Row {
        /// File and line, or generator and index.
        place: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A checkpoint is not what its manifest says, or does not belong to the run.
    #[error("checkpoint {path}: {message}")]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// The numbers broke down; the last checkpoint is intact.
    #[error("step {step}: loss {loss}, gradient norm {norm}: not finite; lower the learning rates or resume")]
    NotFinite {
        /// The step that failed.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        norm: f64,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] crate::model::tokenizer::TokenizerError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    /// Puts the path to an I/O error.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
