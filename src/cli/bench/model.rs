//! `bespoke bench model`: writes a stand-in.

use std::path::PathBuf;

use crate::config;
use crate::model::synthetic_model::{self, Shape, WeightType};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The GGUF file to write
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,
    /// The model that it has the shape of
    #[arg(long, value_enum, default_value_t = Shape::Post)]
    shape: Shape,
    /// How its matrices are stored
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t = WeightType::Q8)]
    weight_type: WeightType,
    /// What the weights are drawn from: the same seed gives the same file
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The GGUF file whose tokenizer and chat template it gets [default: models/bespoke-tiny.gguf]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// A tokenizer that doesn't fit; the disk.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let tokenizer = args.tokenizer.clone().unwrap_or_else(config::default_model);
    synthetic_model::write(args.shape, args.weight_type, args.seed, &tokenizer, &args.out)?;
    let parameters = args.shape.config().parameter_count() as f64 / 1e6;
    eprintln!("{}: {parameters:.1} million random parameters", args.out.display());
    Ok(())
}
