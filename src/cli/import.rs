//! `bespoke import`: a GGUF file becomes a Hugging Face folder.

use std::path::PathBuf;

use crate::model::{gguf_file, hugging_face};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file of architecture llama, qwen2, qwen3, gemma2 or qwen35 with F32, F16, BF16 or Q8_0 weights
    file: PathBuf,
    /// Folder to write
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A file that breaks a rule or holds what the decoder does not compute; the disk.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = gguf_file::import(&args.file)?;
    hugging_face::save(&args.output, &model)?;
    println!("{}: {} parameters as F32", args.output.display(), model.config.parameter_count());
    Ok(())
}
