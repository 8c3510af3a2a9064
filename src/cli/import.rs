//! `bespoke import`: a GGUF file becomes a Hugging Face folder.

use std::path::PathBuf;

use crate::model::{gguf_file, hugging_face};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file of architecture llama, qwen2, qwen3, gemma2 or qwen35, with weights of any type that ggml can dequantise
    file: PathBuf,
    /// Folder to write
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A file that breaks a rule or holds what the decoder does not compute; the disk.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // Weights pass through one at a time: a large model needs no memory of its size.
    let file = gguf_file::Imported::open(&args.file)?;
    hugging_face::save_parts(&args.output, &file.config, &file.text, |parameter| {
        file.values(parameter.role)
    })?;
    println!("{}: {} parameters as F32", args.output.display(), file.config.parameter_count());
    Ok(())
}
