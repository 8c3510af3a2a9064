//! `bespoke self-test`: the child process in which the daemon tests its kernels. It writes a line
//! of JSON before each step that may kill it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, anyhow};

use crate::engine::kernels::{Kernel, Kernels};
use crate::engine::{SelfTestLine, self_test_trial};
use crate::spokes::probe::Confinement;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The GGUF file to compute with
    #[arg(value_name = "MODEL.gguf")]
    model: PathBuf,
    /// Kernel to leave out: attention, product or felix
    #[arg(long, value_name = "KERNEL", value_parser = parse)]
    without: Vec<Kernel>,
    /// Memory that this process may use
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
}

fn parse(text: &str) -> Result<Kernel, String> {
    let named = Kernel::ALL.into_iter().find(|kernel| kernel.name() == text);
    named.ok_or_else(|| "expected attention, product or felix".to_owned())
}

/// Runs the command.
///
/// # Errors
/// The model can't be loaded or run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let bounds = Confinement { memory: args.memory };
    bounds.bound().context("can't limit the memory of this process")?;
    let kernels = args.without.iter().fold(Kernels::best(), |kernels, &kernel| kernels.without(kernel));
    let mut tell = |line: &SelfTestLine| {
        // If nothing reads this, the parent is gone and this process will end soon.
        let _ = serde_json::to_string(line).map(|line| println!("{line}"));
        let _ = std::io::stdout().flush();
    };
    self_test_trial(&args.model, kernels, &mut tell).map_err(|error| anyhow!(error))
}
