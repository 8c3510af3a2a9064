//! The kernels that an engine computes with, and what the self-test says about them.

use serde::{Deserialize, Serialize};

use super::kernels::{Kernel, Kernels};
use super::self_test::{SelfTest, TestError, Tested};
use crate::config::{KernelChoice, ModelSettings};

fn kernels(choice: KernelChoice) -> Kernels {
    match choice {
        KernelChoice::Auto => Kernels::best(),
        KernelChoice::Off => Kernels::OFF,
    }
}

/// The kernels in use, and the result of the self-test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct ComputingReport {
    /// Each of our kernels and its form.
    pub kernels: Vec<KernelState>,
    /// Result of the self-test.
    pub self_test: TestState,
}

/// State of one of our kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelState {
    /// The kernel.
    pub kernel: Kernel,
    /// Its form: `avx512vnni`, `avx512`, `avx2` or `portable`; `llama.cpp` if our kernel is not
    /// used.
    pub form: String,
    /// Why it was disabled, if the self-test found a fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// Result of the self-test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct TestState {
    /// How the test ended.
    pub outcome: Outcome,
    /// Batch sizes (in rows) that were tested.
    pub rows: Vec<u32>,
    /// Seconds that the test took when it ran.
    pub seconds: f64,
    /// Details: why it wasn't finished, or what it left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How a self-test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The test was not requested.
    #[default]
    Skipped,
    /// All kernels compute correctly.
    Passed,
    /// All kernels passed when this program last tested this post on this processor.
    Remembered,
    /// A kernel of ours is faulty and was disabled.
    Faulty,
    /// The test could not be finished, so nothing is known.
    Unfinished,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 5] =
        [Self::Skipped, Self::Passed, Self::Remembered, Self::Faulty, Self::Unfinished];

    /// The name used in answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Passed => "passed",
            Self::Remembered => "remembered",
            Self::Faulty => "faulty",
            Self::Unfinished => "unfinished",
        }
    }
}

/// A self-test that may be running in another process.
pub(super) struct Choosing {
    kernels: Kernels,
    test: Option<std::thread::JoinHandle<Result<Tested, TestError>>>,
}

/// Determines the kernels that can be used with the model. Blocks until the test is done.
///
/// # Errors
/// Even llama.cpp's own kernels fail.
pub fn computing_report(model: &ModelSettings, test: Option<SelfTest>) -> Result<ComputingReport, String> {
    choose(model, test).chosen().map(|(_, report)| report)
}

/// Starts to determine the kernels that can be used with the model. Without a test, they are used
/// untested.
pub(super) fn choose(model: &ModelSettings, test: Option<SelfTest>) -> Choosing {
    let kernels = kernels(model.kernels);
    let test = test.and_then(|test| {
        let model = model.path.clone();
        let named = std::thread::Builder::new().name("self-test".to_owned());
        named.spawn(move || test.run(&model, kernels)).ok()
    });
    Choosing { kernels, test }
}

impl Choosing {
    /// Waits for the test and returns the kernels to use, with a report.
    ///
    /// # Errors
    /// Even llama.cpp's own kernels fail.
    pub(super) fn chosen(self) -> Result<(Kernels, ComputingReport), String> {
        let Some(test) = self.test else {
            return Ok((self.kernels, report(self.kernels, &[], TestState::default())));
        };
        let tested = match test.join() {
            Ok(Ok(tested)) => tested,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => Tested::unfinished(self.kernels, "its thread has panicked".to_owned()),
        };
        let Tested { kernels, faults, state } = tested;
        for (kernel, fault) in &faults {
            tracing::error!(
                kernel = kernel.name(),
                fault,
                "one of our kernels is disabled; answers stay correct but are slower"
            );
        }
        match state.outcome {
            Outcome::Unfinished => tracing::warn!(
                note = state.note.as_deref().unwrap_or_default(),
                "the self-test was not finished; kernels are used untested"
            ),
            outcome => tracing::info!(
                outcome = outcome.name(),
                %kernels,
                rows = ?state.rows,
                seconds = (state.seconds * 1e3).round() / 1e3,
                note = state.note.as_deref().unwrap_or_default(),
                "self-test"
            ),
        }
        Ok((kernels, report(kernels, &faults, state)))
    }
}

fn report(kernels: Kernels, faults: &[(Kernel, String)], self_test: TestState) -> ComputingReport {
    let state = |kernel: Kernel| KernelState {
        kernel,
        form: kernels.form(kernel).map_or("llama.cpp", super::kernels::Form::name).to_owned(),
        fault: faults.iter().find(|(of, _)| *of == kernel).map(|(_, fault)| fault.clone()),
    };
    ComputingReport { kernels: Kernel::ALL.into_iter().map(state).collect(), self_test }
}
