//! `bespoke spoke convert`: converts between PEFT adapters and llama.cpp's LoRA files, and between
//! the two formats of Felix spokes.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::show::format;
use crate::adapter::{self, Format, Kind, Limits, Post};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A spoke in any format
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Where to write: NAME.gguf, NAME.safetensors (Felix) or a folder (PEFT)
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The post; required for PEFT adapters, because its architecture determines the order of rows
    #[arg(long, value_name = "MODEL.gguf")]
    post: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Why the file is no spoke or can't have the other format; I/O errors.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let limits = Limits::default();
    let post = args.post.as_deref().map(Post::open).transpose()?;
    let found = adapter::inspect(&args.input, post.as_ref(), &limits)?;
    let to = target(found.kind(), &args.output);
    if to == Format::PeftFolder && args.output.is_file() {
        bail!("{}: is a file, expected a folder or nothing", args.output.display());
    }
    let written = adapter::convert(&args.input, &args.output, to, post.as_ref(), &limits)?;
    println!("{}: {}, {} bytes", args.output.display(), format(written.format), written.file_bytes);
    Ok(())
}

/// The format that a file name implies.
fn target(kind: Kind, output: &Path) -> Format {
    match output.extension().and_then(|end| end.to_str()) {
        Some("gguf") if kind == Kind::Lora => Format::LoraGguf,
        Some("gguf") => Format::FelixGguf,
        Some("safetensors") => Format::FelixSafetensors,
        Some("zip") => Format::PeftZip,
        _ => Format::PeftFolder,
    }
}
