//! With which kernels an engine computes, and what is known of them.

use serde::{Deserialize, Serialize};

use super::kernels::{Kernel, Kernels};
use super::self_test::{SelfTest, TestError, Tested};
use crate::config::KernelChoice;

/// How an engine is to compute.
#[derive(Debug, Clone, Default)]
pub struct Computing {
    /// Which kernels.
    pub choice: KernelChoice,
    /// How they are tried before they serve; `None`: they aren't.
    pub test: Option<SelfTest>,
}

fn kernels(choice: KernelChoice) -> Kernels {
    match choice {
        KernelChoice::Auto => Kernels::best(),
        KernelChoice::Off => Kernels::OFF,
    }
}

/// Which kernels compute, and what the self-test said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct ComputingReport {
    /// Each kernel of ours and how it computes.
    pub kernels: Vec<KernelState>,
    /// The self-test.
    pub self_test: TestState,
}

/// A kernel of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelState {
    /// What it computes.
    pub kernel: Kernel,
    /// How: `avx512vnni`, `avx512`, `avx2`, `portable`; `llama.cpp` where it doesn't.
    pub form: String,
    /// Why it was switched off, if the self-test found a fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// What the self-test said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct TestState {
    /// How it ended.
    pub outcome: Outcome,
    /// Rows that were computed at a time.
    pub rows: Vec<u32>,
    /// Seconds that it took when it ran.
    pub seconds: f64,
    /// More about it: why it wasn't finished, what it left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How a self-test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was not wanted.
    #[default]
    Skipped,
    /// Everything computes what it should.
    Passed,
    /// Everything did when this program last tried this post on this processor.
    Remembered,
    /// A kernel of ours doesn't; it is switched off.
    Faulty,
    /// It could not be brought to an end: nothing is known.
    Unfinished,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Skipped, Self::Passed, Self::Remembered, Self::Faulty, Self::Unfinished];

    /// The name in answers and metrics.
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

/// A self-test that runs in another process.
pub(super) struct Choosing {
    kernels: Kernels,
    test: Option<std::thread::JoinHandle<Result<Tested, TestError>>>,
}

impl Computing {
    /// What can be used with this model; blocks until that is known.
    ///
    /// # Errors
    /// Not even llama.cpp's own kernels work.
    pub fn find_out(&self, model: &std::path::Path) -> Result<ComputingReport, String> {
        self.choose(model).chosen().map(|(_, report)| report)
    }

    /// Begins to find out which kernels can be used with this model.
    pub(super) fn choose(&self, model: &std::path::Path) -> Choosing {
        let kernels = kernels(self.choice);
        let test = self.test.clone().and_then(|test| {
            let model = model.to_owned();
            let named = std::thread::Builder::new().name("self-test".to_owned());
            named.spawn(move || test.run(&model, kernels)).ok()
        });
        Choosing { kernels, test }
    }
}

impl Choosing {
    /// The kernels to use, when that is known, and what there is to say about them.
    ///
    /// # Errors
    /// Not even llama.cpp's own kernels work.
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
                "a kernel of ours is switched off; answers are right, and slower"
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
