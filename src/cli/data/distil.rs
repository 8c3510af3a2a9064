//! `bespoke data distil`: caches a teacher's outputs on disk, so that many students learn from one
//! pass of a slow teacher.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::cli::train::{self, Progress};
use crate::train::distil;

/// Interval of progress lines if no progress bar is shown.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recipe of the students, with a teacher
    recipe: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Change a key of the recipe: `--set train.steps=100`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// A wrong recipe (exit code 78), a teacher that gives no answer, I/O errors.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let recipe = train::load(&args.recipe, &args.set)?;
    let ask = train::ask(&recipe)?;
    let steps = recipe.train.steps;
    let bar = ProgressBar::new(steps);
    let mut told = Instant::now();
    let (documents, before) =
        distil::write_cache(&recipe, &args.out, ask, &mut Progress::default(), |step| {
            bar.set_position(step);
            // Without a visible bar, a line now and then.
            if bar.is_hidden() && told.elapsed() > LINE_EVERY {
                eprintln!("rows of step {step} of {steps} are written");
                told = Instant::now();
            }
        })?;
    bar.finish_and_clear();
    let before = if before > 0 { format!(", {before} of them written before") } else { String::new() };
    println!("{}: {documents} documents{before}", args.out.display());
    Ok(())
}
