//! What a run tells those who watch it, and where they can take part in it.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use crate::device::ComputeDevice;
use crate::model::Parameters;
use crate::train::TrainError;
use crate::train::checkpoint::Change;
use crate::train::evaluate::Evaluation;
use crate::train::log::{DomainNumbers, Speed, Step};
use crate::train::metrics::Measurement;
use crate::train::optimiser::Optimiser;

/// Watches a run. Each method does nothing unless it is overridden.
pub trait Observer {
    /// Sees what has happened, in order. A run that fails tells no end: its error does.
    fn event(&mut self, _event: &Event) {}

    /// Takes part before the first step of this sitting, after a checkpoint is restored.
    ///
    /// # Errors
    /// The observer's; it ends the run.
    fn before_steps(&mut self, _now: &mut Now) -> Result<(), TrainError> {
        Ok(())
    }

    /// Takes part after each step: before the weights are averaged, judged and saved.
    ///
    /// # Errors
    /// The observer's; it ends the run.
    fn after_step(&mut self, _now: &mut Now) -> Result<(), TrainError> {
        Ok(())
    }

    /// Whether the run should end before its next step, with a checkpoint from which it can go on.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
impl Observer for () {}

/// A run between two steps. To go on from a checkpoint bit for bit, what is changed here has to
/// follow from the step and the parameters alone.
pub struct Now<'a> {
    /// Steps taken.
    pub step: u64,
    /// What is trained, in order. Values may be changed where they are.
    pub parameters: &'a Parameters,
    /// What moves it.
    pub optimiser: &'a mut Optimiser,
}

/// What has happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A vocabulary is about to be trained.
    VocabularyBegun {
        /// Entries that it will have.
        entries: usize,
        /// Rows of data that it is trained on.
        rows: usize,
    },
    /// A file of tokens was damaged and has been made again.
    TokensRemade {
        /// The file.
        path: &'a Path,
    },
    /// All is read, and the first step of this sitting comes next.
    Started(&'a Started<'a>),
    /// A step's gradients, activations and attention were measured.
    Measured(&'a Measurement),
    /// A step was taken.
    Step {
        /// What `log.jsonl` has of it.
        numbers: &'a Step,
        /// What `speed.jsonl` has of it.
        speed: &'a Speed,
    },
    /// The model was judged on held-out rows.
    Evaluated(&'a Evaluated<'a>),
    /// A checkpoint is on disk.
    CheckpointWritten {
        /// Steps taken.
        step: u64,
        /// Its folder.
        folder: &'a Path,
    },
    /// Early stopping has ended the steps.
    StoppedEarly {
        /// Steps taken.
        step: u64,
        /// Evaluations without progress.
        evaluations: u64,
    },
    /// The result is that of an earlier step: the best.
    BestTaken {
        /// Which.
        step: u64,
        /// Its held-out loss.
        loss: f64,
    },
    /// The run has ended without an error.
    Ended(&'a End),
}

/// A run before the first step of this sitting.
#[derive(Debug)]
pub struct Started<'a> {
    /// Where it writes.
    pub out: &'a Path,
    /// Where it computes.
    pub compute: &'a ComputeDevice,
    /// Steps taken so far.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Whether it should go on from a checkpoint and found none.
    pub found_none: bool,
    /// Steps so far that have a line in `log.jsonl`: all of them, unless it was damaged.
    pub logged: u64,
    /// Parameters of the decoder.
    pub whole: usize,
    /// Parameters that are trained.
    pub trained: usize,
    /// Entries of the decoder's vocabulary.
    pub vocabulary: usize,
    /// Held-out answers.
    pub held_out: usize,
    /// Held-out rows that no packed row has room for.
    pub too_long: usize,
    /// What the base's loss on a text that it must know is, in words; none without a base.
    pub base_check: Option<&'a str>,
    /// What a person should know of a run that goes on from a checkpoint.
    pub notes: &'a [Note],
}

/// What is other than it was in a run that goes on from a checkpoint, and what that means.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// A recipe's number isn't the one in the checkpoint.
    Changed {
        /// Its key, what it was, and what it is.
        change: Change,
        /// The first step for which it holds.
        from: u64,
    },
    /// The steps so far were computed elsewhere.
    Moved {
        /// Where.
        place: String,
        /// The first step that is computed here.
        from: u64,
    },
    /// Sums are rounded otherwise, because of one of these.
    RoundedOtherwise,
    /// The checkpoint lacks the position in the data.
    DataFromBeginning,
}

impl Display for Note {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = |value: Option<f64>| value.map_or("not given".to_owned(), |value| value.to_string());
        match self {
            Self::Changed { change: (key, saved, now), from } => {
                write!(f, "{key} is {} from step {from} on; it was {}", text(*now), text(*saved))
            }
            Self::Moved { place, from } => {
                write!(f, "the steps before step {from} were computed on {place}")
            }
            Self::RoundedOtherwise => {
                f.write_str("sums are rounded otherwise from here on: the run goes on, but not bit for bit")
            }
            Self::DataFromBeginning => f.write_str(
                "warning: the checkpoint is of a version that didn't keep the position in the data: every domain is \
                 read from its beginning",
            ),
        }
    }
}

/// An evaluation.
#[derive(Debug)]
pub struct Evaluated<'a> {
    /// Steps taken; 0 is a base before its first step.
    pub step: u64,
    /// Numbers over all domains.
    pub together: Evaluation,
    /// Numbers of each domain, where there are several.
    pub domains: &'a BTreeMap<String, DomainNumbers>,
    /// Rows longer than `seq_len` that were skipped since the evaluation before.
    pub too_long: usize,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// After its last step.
    Finished {
        /// A Hugging Face folder, or an adapter.
        result: PathBuf,
    },
    /// Before its last step, because an observer wished so.
    Cancelled {
        /// Steps taken, of which there is a checkpoint unless there are none.
        step: u64,
    },
}
