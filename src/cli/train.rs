//! `bespoke train`: trains a model from a recipe.

use std::path::PathBuf;

use anyhow::Context;

use super::WrongConfiguration;
use crate::model::DecoderConfig;
use crate::model::features::Mixer;
use crate::train::recipe::{Recipe, Stage};
use crate::train::{TrainError, r#loop};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Where model, log and checkpoints go [default: runs/<recipe's name>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the output folder
    #[arg(long)]
    resume: bool,
    /// Change a key of the recipe: `--set train.steps=100`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the resolved recipe and what it costs, and stop
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// A wrong recipe (exit code 78), or a run that failed.
pub fn run(args: Args) -> anyhow::Result<()> {
    let recipe = Recipe::load(&args.recipe, &args.set).map_err(|error| match error {
        TrainError::Recipe { .. } => WrongConfiguration(error.to_string()).into(),
        other => anyhow::Error::new(other),
    })?;
    if args.dry_run {
        print!("{}", plan(&recipe));
        return Ok(());
    }
    let stem = args.recipe.file_stem().context("the recipe has no file name")?;
    let out = args.out.unwrap_or_else(|| PathBuf::from("runs").join(stem));
    r#loop::train(&recipe, &out, args.resume).context("training stopped")?;
    println!("{}", out.display());
    Ok(())
}

/// The resolved recipe, and below it as comments what follows from it.
fn plan(recipe: &Recipe) -> String {
    let config = recipe.decoder_config(recipe.data.vocabulary);
    let steps = recipe.train.steps;
    let (mut from, mut tokens, mut flops, mut stages) = (0, 0.0, 0.0, vec![]);
    for Stage { until_step, seq_len, batch, .. } in recipe.stages() {
        let until = until_step.min(steps);
        let per_step = (batch * seq_len) as f64;
        let count = until.saturating_sub(from) as f64;
        tokens += count * per_step;
        flops += count * per_step * flops_per_token(&config, seq_len);
        stages.push(format!("# steps {}..={until}: {per_step} tokens per step at most\n", from + 1));
        from = until;
    }
    format!(
        "{}\n# parameters: {} with a vocabulary of {}\n{}# tokens: {:.2}M at most\n# arithmetic: about {:.2e} FLOPs\n",
        recipe.to_toml(),
        config.parameter_count(),
        recipe.data.vocabulary,
        stages.concat(),
        tokens / 1e6,
        flops
    )
}

/// Forward and backward cost of one token: 6 per weight of a matrix, and attention over half the row on average. A
/// DeltaNet block counts as its matrices: its state costs little beside them.
fn flops_per_token(config: &DecoderConfig, seq_len: usize) -> f64 {
    let embedding = if config.tied { 0 } else { config.vocab_size * config.hidden_size };
    let vectors: usize = config
        .parameter_shapes()
        .iter()
        .filter(|(_, shape)| shape.len() == 1)
        .map(|(_, shape)| shape[0])
        .sum();
    let matrices = config.parameter_count() as f64 - (embedding + vectors) as f64;
    let attending = config.features.mixers.iter().filter(|mixer| matches!(mixer, Mixer::Attention { .. }));
    let attention = 2.0 * (attending.count() * config.heads * config.head_dim * seq_len) as f64;
    6.0 * matrices + 3.0 * attention
}
