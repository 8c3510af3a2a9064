//! `bespoke spoke probe`: does the spoke run on this post, is everything that it computes finite,
//! does it change anything? The daemon probes each spoke this way in a child process before it
//! loads it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytesize::ByteSize;
use serde_json::json;

use crate::adapter::{Limits, Post, generation, inspect, to_served};
use crate::config::default_model;
use crate::config::{LEAST_PROBE_MEMORY, ModelSettings};
use crate::engine::{Engine, LlamaEngine, LoadSpoke};
use crate::spokes::life::Reason;
use crate::spokes::probe::{Confinement, Finding, Stage, Verdict, trial_in_stages};

/// Tokens of the probe's context; its texts are short.
const CONTEXT: u32 = 256;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A spoke in any format
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The post [default: models/bespoke-tiny.gguf]
    #[arg(long, value_name = "MODEL.gguf")]
    model: Option<PathBuf>,
    /// Memory that this process may use
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// Print one line of JSON, even if the spoke is refused
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// A file that is no spoke for this post or doesn't work with it; a post that can't be run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let least = ByteSize(LEAST_PROBE_MEMORY);
    ensure!(
        args.memory.is_none_or(|bytes| bytes >= LEAST_PROBE_MEMORY),
        "--memory: a probe needs at least {least}"
    );
    Confinement { memory: args.memory }.enter().context("can't limit the memory of this process")?;
    let finding = match probe(args) {
        // The daemon must not blame the file for our own problems.
        Err(error) if args.json => Finding::undecided(crate::cli::told(&error).join(": ")),
        finding => finding?,
    };
    if args.json {
        println!("{}", serde_json::to_string(&finding)?);
        return Ok(());
    }
    let verdict = match finding.verdict {
        Verdict::Differs => "it works and changes answers",
        Verdict::Same => "it works and changes nothing",
        Verdict::Refused => "it does not work",
        Verdict::Undecided => "it could not be tested",
    };
    println!("{}: {verdict} ({} tokens compared)", args.file.display(), finding.tokens);
    if let Some(why) = &finding.why {
        eprintln!("{why}");
        if let Some(hint) = &why.hint {
            eprintln!("hint: {hint}");
        }
    }
    match finding.verdict {
        Verdict::Refused => bail!("{} is refused", args.file.display()),
        Verdict::Undecided => bail!("{} could not be tested", args.file.display()),
        Verdict::Differs | Verdict::Same => {}
    }
    Ok(())
}

fn probe(args: &Args) -> anyhow::Result<Finding> {
    let model = args.model.clone().unwrap_or_else(default_model);
    let limits = Limits { max_bytes: u64::MAX, max_resident_bytes: u64::MAX, ..Limits::default() };
    let found = match inspect(&args.file, None, &limits) {
        Ok(found) => found,
        // With `--json` the refusal is the result; otherwise it is an error.
        Err(refusal) if args.json && !refusal.is_trouble() => {
            return Ok(Finding::refused(Reason::from(refusal)));
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let work = tempfile::tempdir()?;
    let path = if found.format.is_served() {
        args.file.clone()
    } else {
        let served = work.path().join("spoke.gguf");
        to_served(&args.file, &served, &Post::open(&model)?, &limits)?;
        served
    };
    let spoke = LoadSpoke {
        generation: generation(&args.file, &limits)?,
        kind: found.kind(),
        path,
        name: "probe".to_owned(),
    };
    let tell = |stage: Stage| {
        // If we die, the parent knows how far we came.
        if args.json {
            eprintln!("{}", json!({ "stage": stage }));
        }
    };
    Ok(trial_in_stages(engine(model).as_ref(), spoke, tell)?)
}

/// An engine in this process, as small as possible.
fn engine(path: PathBuf) -> Arc<dyn Engine> {
    #[cfg(feature = "test-support")]
    if let Some(fake) = crate::engine::FakeEngine::from_environment() {
        return Arc::new(fake);
    }
    Arc::new(LlamaEngine::start(ModelSettings {
        context: Some(CONTEXT),
        lanes: 1,
        queue: 4,
        queue_tokens: u64::MAX,
        // On a busy machine, several threads would spin while they wait for each other, and take
        // hundreds of times longer.
        threads: 1,
        draft: false,
        ..ModelSettings::of(path)
    }))
}
