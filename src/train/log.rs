//! What a run writes down of each step: `log.jsonl` and `speed.jsonl`.
//!
//! Nothing in `log.jsonl` depends on time, so an interrupted run ends with the same bytes as an
//! uninterrupted one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::TrainError;
use super::evaluate::Evaluation;
use super::objective::Terms;
use crate::atomic_file;

/// The figures of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Number of the step, from 1.
    pub step: u64,
    /// The objective: mean loss over answer tokens, in nats.
    pub loss: f64,
    /// Terms of the loss, if there are others than cross-entropy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub terms: Option<Terms>,
    /// The term of the loss that belongs to the step and not to its rows, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step_term: Option<f64>,
    /// Share of answer tokens that were the most likely.
    pub accuracy: f64,
    /// Factor of the learning rates.
    pub lr: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens so far, excluding padding.
    pub tokens: u64,
    /// Held-out figures over all domains, if this step ended with an evaluation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval: Option<Evaluation>,
    /// Held-out figures of each domain, if there are several, with its weight after this step.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub domains: BTreeMap<String, DomainNumbers>,
}

/// A domain at an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DomainNumbers {
    /// Share of the tokens that are read from it.
    pub weight: f64,
    /// Held-out figures.
    #[serde(flatten)]
    pub eval: Evaluation,
}

/// The speed of a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Number of the step.
    pub step: u64,
    /// Seconds of training so far, over all sessions.
    pub seconds: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
}

/// Name of the file of [`Step`]s.
pub const LOG: &str = "log.jsonl";
/// Name of the file of [`Speed`]s.
pub const SPEED: &str = "speed.jsonl";

/// Writes both files.
pub struct Log {
    files: [(PathBuf, std::fs::File); 2],
    seconds: f64,
    kept: u64,
}

impl Log {
    /// Opens the files in `out`; lines after step `from` (from a run that died after its
    /// checkpoint) are dropped.
    ///
    /// # Errors
    /// A file that can't be read or written.
    pub fn open(out: &Path, from: u64) -> Result<Self, TrainError> {
        let (log, kept) = reopened::<Step>(out.join(LOG), from)?;
        let (speed, speeds) = reopened::<Speed>(out.join(SPEED), from)?;
        let seconds = speeds.last().map_or(0.0, |speed| speed.seconds);
        Ok(Self { files: [log, speed], seconds, kept: kept.len() as u64 })
    }

    /// Number of steps with a line from before this session.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Seconds of training in earlier sessions.
    pub fn seconds_before(&self) -> f64 {
        self.seconds
    }

    /// Writes the lines of a step.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn step(&mut self, step: &Step, speed: &Speed) -> Result<(), TrainError> {
        for ((path, file), line) in self.files.iter_mut().zip([line(step), line(speed)]) {
            file.write_all(line.as_bytes()).map_err(TrainError::file(&*path))?;
        }
        Ok(())
    }

    /// Syncs all lines to disk; must happen before the checkpoint that continues from them.
    ///
    /// # Errors
    /// The disk.
    pub fn sync(&self) -> Result<(), TrainError> {
        self.files.iter().try_for_each(|(path, file)| file.sync_all().map_err(TrainError::file(path)))
    }
}

fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("finite numbers have a JSON form") + "\n"
}

/// The field that every line has.
#[derive(Deserialize)]
struct Numbered {
    step: u64,
}

/// Truncates a file to the lines up to step `from` and opens it for appending; returns the values
/// of the kept lines. Kept lines stay byte for byte, because rewriting a number could change its
/// last digit. Dropped lines need not parse: they may be the last words of a run that failed.
///
/// # Errors
/// As [`read_lines`], for the lines that are kept; a file that can't be written.
pub(super) fn reopened<T: DeserializeOwned>(
    path: PathBuf,
    from: u64,
) -> Result<((PathBuf, std::fs::File), Vec<T>), TrainError> {
    let mut lines = whole_lines(&path)?;
    // Steps ascend, so everything after the first late line is dropped.
    let late = |line: &str| serde_json::from_str(line).is_ok_and(|line: Numbered| line.step > from);
    lines.truncate(lines.split_inclusive('\n').take_while(|line| !late(line)).map(str::len).sum());
    let values = parse::<T>(&path, &lines)?;
    atomic_file::write(&path, lines.as_bytes()).map_err(TrainError::file(&path))?;
    let file = atomic_file::append(&path).map_err(TrainError::file(&path))?;
    Ok(((path, file), values))
}

/// All steps of a run's `log.jsonl`; empty if there is no file.
///
/// # Errors
/// As [`read_lines`].
pub fn read(out: &Path) -> Result<Vec<Step>, TrainError> {
    read_lines(&out.join(LOG))
}

/// All values of a JSONL file; empty if there is no file. An incomplete last line of a killed run
/// is ignored.
///
/// # Errors
/// A file that can't be read, a line that can't be parsed.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, TrainError> {
    parse(path, &whole_lines(path)?)
}

/// The complete lines of a file.
fn whole_lines(path: &Path) -> Result<String, TrainError> {
    if !path.exists() {
        return Ok(String::new());
    }
    let mut text = fs_err::read_to_string(path).map_err(TrainError::file(path))?;
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    Ok(text)
}

fn parse<T: DeserializeOwned>(path: &Path, lines: &str) -> Result<Vec<T>, TrainError> {
    let parse = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| TrainError::Row {
            place: format!("{}, line {}", path.display(), at + 1),
            message: e.to_string(),
        })
    };
    lines.lines().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_line_that_is_no_number_is_cut_and_an_early_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let line = |step: u64, seconds: &str| {
            format!("{{\"step\":{step},\"seconds\":{seconds},\"tokens_per_s\":1.0}}\n")
        };
        let text = line(1, "0.5") + &line(2, "null") + &line(3, "2.0");
        let path = folder.path().join(SPEED);
        atomic_file::write(&path, text.as_bytes()).unwrap();
        let error = reopened::<Speed>(path.clone(), 2).unwrap_err().to_string();
        assert!(error.contains("speed.jsonl, line 2"), "{error}");
        let log = Log::open(folder.path(), 1).unwrap();
        assert!((log.seconds_before() - 0.5).abs() < 1e-12);
        assert_eq!(fs_err::read_to_string(&path).unwrap(), line(1, "0.5"));
    }
}
