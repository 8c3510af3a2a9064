//! `bespoke import`: converts a GGUF file to a Hugging Face folder.

use std::path::PathBuf;

use crate::model::{gguf_file, hugging_face};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file of architecture llama, qwen2, qwen3, gemma2 or qwen35, with weights of any type
    /// that ggml can dequantise
    file: PathBuf,
    /// Folder to write
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A file that breaks a rule or has parts that the decoder doesn't compute; I/O errors.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // Weights are converted one at a time, so a large model doesn't have to fit in memory.
    let file = gguf_file::Imported::open(&args.file)?;
    hugging_face::save_parts(&args.output, &file.config, &file.text, |parameter| {
        file.values(parameter.role)
    })?;
    println!("{}: {} parameters as F32", args.output.display(), file.config.parameter_count());
    Ok(())
}
