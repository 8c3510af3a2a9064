//! The self-test: before kernels serve, a child process computes with them what serving will
//! compute. A kernel that crashes or computes wrong numbers there causes a message that names it,
//! instead of the end of the daemon.
//!
//! This is the parent's side. It starts the child and follows its reports, so that it knows which
//! kernel was running if the child dies. It then leaves that kernel out and tests the rest again.

mod arithmetic;
mod excerpt;
mod memory;
mod trial;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::computing::{Outcome, TestState};
use super::kernels::{Kernel, Kernels};
use crate::cpu_features;

pub use trial::trial;

/// How long a child may be silent. It reports each step before computing it, and loads the model
/// before the first.
const PATIENCE: Duration = Duration::from_secs(60);
/// Minimum bytes of a model that are read per second.
const SLOWEST_DISK: u64 = 30 << 20;
/// Bytes of the child's stderr that are kept.
const WORDS: u64 = 64 << 10;

/// Settings of the self-test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfTest {
    /// Path of this program.
    pub program: PathBuf,
    /// File that stores the result, if any.
    pub remembered: Option<PathBuf>,
    /// Bytes of memory that the child may use.
    pub memory: u64,
}

/// What the child is computing with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// llama.cpp's kernels alone.
    LlamaCpp,
    /// Additionally this kernel of ours.
    With(Kernel),
    /// All kernels under test.
    Together,
}

/// A line that the child writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A computation begins.
    Begin {
        /// The kernels in use.
        stage: Stage,
        /// Number of rows in the batch; 0 if the kernel alone computes known numbers.
        rows: u32,
    },
    /// A kernel computes wrong numbers.
    Wrong {
        /// The kernel.
        kernel: Kernel,
        /// The deviation.
        what: String,
    },
    /// The test is finished.
    Done {
        /// Batch sizes (in rows) that were tested.
        rows: Vec<u32>,
        /// What was left out, and why.
        note: Option<String>,
    },
}

/// The result of a test.
#[derive(Debug, Clone, PartialEq)]
pub struct Tested {
    /// Kernels that can be used.
    pub kernels: Kernels,
    /// Faulty kernels, each with the reason.
    pub faults: Vec<(Kernel, String)>,
    /// State for the report.
    pub state: TestState,
}

/// llama.cpp's own kernels fail, so that no model can be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("llama.cpp's own kernels don't work here: {what}\nhint: {hint}")]
pub struct TestError {
    what: String,
    hint: String,
}

impl Tested {
    /// A result for a test that could not be finished.
    pub fn unfinished(kernels: Kernels, note: String) -> Self {
        let state = TestState { outcome: Outcome::Unfinished, note: Some(note), ..TestState::default() };
        Self { kernels, faults: Vec::new(), state }
    }
}

/// How a child ended.
enum End {
    /// It finished the test.
    Done { rows: Vec<u32>, note: Option<String> },
    /// It was killed by a signal that its own code caused, or fell silent, at this step.
    Died { at: Option<(Stage, u32)>, how: String },
    /// It ended for a reason that says nothing about kernels.
    Other(String),
}

impl SelfTest {
    /// Tests these kernels on a model.
    ///
    /// # Errors
    /// llama.cpp's own kernels fail.
    pub fn run(&self, model: &Path, mut kernels: Kernels) -> Result<Tested, TestError> {
        let began = Instant::now();
        let key = memory::key(&self.program, model, kernels);
        if let Some(found) = self.remembered.as_deref().and_then(|path| memory::recall(path, key.as_ref()?)) {
            let state = TestState { outcome: Outcome::Remembered, ..found };
            return Ok(Tested { kernels, faults: Vec::new(), state });
        }
        let mut faults: Vec<(Kernel, String)> = Vec::new();
        // Each iteration but the last removes a kernel.
        for _ in 0..=Kernel::ALL.len() {
            let mut wrong = Vec::new();
            let end = match self.child(model, &faults, &mut wrong) {
                Ok(end) => end,
                Err(error) => return Ok(Tested::unfinished(kernels, error.to_string())),
            };
            for (kernel, what) in wrong {
                kernels = kernels.without(kernel);
                faults.push((kernel, what));
            }
            match end {
                End::Done { rows, note } => {
                    let outcome = if faults.is_empty() { Outcome::Passed } else { Outcome::Faulty };
                    let state = TestState { outcome, rows, seconds: began.elapsed().as_secs_f64(), note };
                    if let (Outcome::Passed, Some(path), Some(key)) = (outcome, &self.remembered, &key) {
                        memory::keep(path, key, &state);
                    }
                    return Ok(Tested { kernels, faults, state });
                }
                End::Died { at: Some((Stage::With(kernel), rows)), how } => {
                    kernels = kernels.without(kernel);
                    faults.push((kernel, format!("{how} {}", computing(rows))));
                }
                End::Died { at: Some((Stage::Together, rows)), how } => {
                    for kernel in [Kernel::Attention, Kernel::Product] {
                        kernels = kernels.without(kernel);
                        faults.push((
                            kernel,
                            format!("with another of our kernels, {how} {}", computing(rows)),
                        ));
                    }
                }
                End::Died { at, how } => return Err(fatal(at, &how)),
                End::Other(reason) => return Ok(Tested { faults, ..Tested::unfinished(kernels, reason) }),
            }
        }
        Ok(Tested { faults, ..Tested::unfinished(kernels, "kernels failed in every attempt".to_owned()) })
    }

    /// Runs a child once, without the kernels that have faults.
    fn child(
        &self,
        model: &Path,
        faults: &[(Kernel, String)],
        wrong: &mut Vec<(Kernel, String)>,
    ) -> std::io::Result<End> {
        let mut command = Command::new(&self.program);
        command.args(["self-test", "--memory", &self.memory.to_string()]);
        for (kernel, _) in faults {
            command.args(["--without", kernel.name()]);
        }
        command.arg("--").arg(model);
        // Run the child in its own process group, so that signals from the terminal to the daemon
        // don't reach it.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Ended(command.spawn()?);
        let (out, err) = (child.0.stdout.take(), child.0.stderr.take());
        let (lines, heard) = mpsc::channel();
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(out?).lines().map_while(Result::ok) {
                lines.send(serde_json::from_str::<Line>(&line).ok()).ok()?;
            }
            Some(())
        });
        let words = std::thread::spawn(move || {
            let mut text = Vec::new();
            let mut err = err?;
            let _ = (&mut err).take(WORDS).read_to_end(&mut text);
            let _ = std::io::copy(&mut err, &mut std::io::sink());
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
        });
        let bytes = fs_err::metadata(model).map_or(0, |metadata| metadata.len());
        let patience = PATIENCE + Duration::from_secs(bytes / SLOWEST_DISK);
        let (mut at, mut done) = (None, None);
        loop {
            match heard.recv_timeout(patience) {
                Ok(Some(Line::Begin { stage, rows })) => at = Some((stage, rows)),
                Ok(Some(Line::Wrong { kernel, what })) => wrong.push((kernel, what)),
                Ok(Some(Line::Done { rows, note })) => done = Some(End::Done { rows, note }),
                // llama.cpp may write lines of its own.
                Ok(None) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let how = format!("no output for {}", humantime::format_duration(patience));
                    return Ok(match at {
                        Some((Stage::With(_) | Stage::Together, _)) => End::Died { at, how },
                        _ => End::Other(how),
                    });
                }
            }
        }
        let status = child.0.wait()?;
        let _ = listener.join();
        let words = words.join().ok().flatten().unwrap_or_else(|| "no output".to_owned());
        Ok(match done {
            Some(done) if status.success() => done,
            _ => ended(status, at, &words),
        })
    }
}

/// Kills the child when dropped, so that it never outlives the wait for it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Interprets the end of a child that didn't finish the test.
fn ended(status: ExitStatus, at: Option<(Stage, u32)>, words: &str) -> End {
    let named = |signal| match signal {
        libc::SIGILL => Some("SIGILL, illegal instruction"),
        libc::SIGSEGV => Some("SIGSEGV, segmentation fault"),
        libc::SIGBUS => Some("SIGBUS, bus error"),
        libc::SIGFPE => Some("SIGFPE, arithmetic"),
        libc::SIGABRT => Some("SIGABRT, abort"),
        libc::SIGTRAP => Some("SIGTRAP, trap"),
        _ => None,
    };
    if let Some(signal) = status.signal() {
        match named(signal) {
            // An abort with a short message most likely means that memory was not available.
            Some(name) => End::Died { at, how: format!("it was killed by signal {signal} ({name})") },
            None => End::Other(format!("its process was ended by signal {signal}")),
        }
    } else {
        let code = status.code().unwrap_or(-1);
        End::Other(format!("its process ended with {code}: {words}"))
    }
}

fn computing(rows: u32) -> String {
    match rows {
        0 => "computing known numbers".to_owned(),
        1 => "computing 1 row".to_owned(),
        rows => format!("computing {rows} rows"),
    }
}

/// The error for a child that dies in llama.cpp's own code.
fn fatal(at: Option<(Stage, u32)>, how: &str) -> TestError {
    let what = match at {
        Some((_, rows)) => format!("{how} {}", computing(rows)),
        None => format!("{how} before it computes"),
    };
    let missing = super::ffi::missing_features();
    let hint = if missing.is_empty() {
        let compiled = super::ffi::compiled_features().join(", ");
        format!(
            "this program was compiled for a processor with {compiled}; `make` on this machine, or `make portable`, compiles one that fits. `bespoke doctor` says more"
        )
    } else {
        format!(
            "this program was compiled for a processor with {}, which this one{} doesn't have: run `make` on this machine, or `make portable`",
            missing.join(", "),
            cpu_features::name().map_or_else(String::new, |name| format!(" ({name})")),
        )
    };
    TestError { what, hint }
}

#[cfg(test)]
mod tests;
