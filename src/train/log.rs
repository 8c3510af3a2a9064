//! What a run says: one line a step for people, `log.jsonl` for programs.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::TrainError;
use super::evaluate::Evaluation;
use crate::durable;

/// Numbers of one step.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Step {
    /// Which, from 1.
    pub step: u64,
    /// Mean loss over answer tokens, in nats.
    pub loss: f64,
    /// Share of answer tokens that were the likeliest.
    pub accuracy: f64,
    /// Factor of the learning rates.
    pub lr: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens so far, padding aside.
    pub tokens: u64,
    /// Tokens per second of this step.
    pub tokens_per_s: f64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Held-out numbers, where this step ended with an evaluation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval: Option<Evaluation>,
}

/// Writes both; a progress bar stands under the lines on a terminal.
pub struct Log {
    path: PathBuf,
    file: std::fs::File,
    bar: Option<indicatif::ProgressBar>,
    steps: u64,
}

impl Log {
    /// Opens `log.jsonl`; lines after step `from` (of a run that died after its checkpoint) are dropped.
    ///
    /// # Errors
    /// A file that can't be read or written.
    pub fn open(path: &Path, from: u64, steps: u64) -> Result<Self, TrainError> {
        let kept: Vec<Step> = read(path)?.into_iter().filter(|step| step.step <= from).collect();
        let text: String = kept.iter().map(line).collect();
        durable::write(path, text.as_bytes()).map_err(TrainError::file(path))?;
        let file = durable::append(path).map_err(TrainError::file(path))?;
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = indicatif::ProgressBar::new(steps);
            bar.set_position(from);
            bar
        });
        Ok(Self { path: path.to_owned(), file, bar, steps })
    }

    /// A line for people.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// The step's two lines.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn step(&mut self, step: &Step) -> Result<(), TrainError> {
        self.file.write_all(line(step).as_bytes()).map_err(TrainError::file(&self.path))?;
        let rate = step.tokens_per_s;
        let eta = step.seconds / step.step as f64 * self.steps.saturating_sub(step.step) as f64;
        self.say(&format!(
            "step {}/{} | loss {:.4} | acc {:5.1} % | lr {:.3} | norm {:.3} | {rate:.0} tok/s | {:.2}M tokens | eta {}",
            step.step,
            self.steps,
            step.loss,
            step.accuracy * 100.0,
            step.lr,
            step.grad_norm,
            step.tokens as f64 / 1e6,
            humantime::format_duration(std::time::Duration::from_secs(eta as u64)),
        ));
        if let Some(eval) = step.eval {
            self.say(&format!(
                "  held out: loss {:.4} | token accuracy {:.2} % | whole answers {:.1} %",
                eval.loss,
                eval.accuracy * 100.0,
                eval.exact * 100.0
            ));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(step.step);
        }
        Ok(())
    }
}

fn line(step: &Step) -> String {
    serde_json::to_string(step).expect("numbers have a JSON form") + "\n"
}

/// All steps of a `log.jsonl`; none if there is no file. A last line that a dying run cut is left out.
///
/// # Errors
/// A file that can't be read.
pub fn read(path: &Path) -> Result<Vec<Step>, TrainError> {
    if !path.exists() {
        return Ok(vec![]);
    }
    let text = fs_err::read_to_string(path).map_err(TrainError::file(path))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
