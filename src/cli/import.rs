//! `bespoke import`: converts a GGUF file to a Hugging Face folder.

use std::path::PathBuf;

use bytesize::ByteSize;
use safetensors::Dtype;

use crate::model::hugging_face::{self, Storage};
use crate::model::{ModelSource, gguf_file};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file of architecture llama, qwen2, qwen3, gemma2 or qwen35, with weights of any type
    /// that ggml can dequantise
    file: PathBuf,
    /// Folder to write
    output: PathBuf,
    /// How weights are stored. BF16 rounds them and takes half the room
    #[arg(long = "type", value_name = "TYPE", default_value = "F32", ignore_case = true)]
    kind: Kind,
    /// Most bytes of one file of weights, such as 5GB; more are divided among several files [default: no limit]
    #[arg(long, value_name = "SIZE")]
    file_size: Option<ByteSize>,
}

/// How the weights of a folder are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[clap(rename_all = "verbatim")]
enum Kind {
    F32,
    BF16,
}

/// Runs the command.
///
/// # Errors
/// A file that breaks a rule or has parts that the decoder doesn't compute; I/O errors.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let dtype = match args.kind {
        Kind::F32 => Dtype::F32,
        Kind::BF16 => Dtype::BF16,
    };
    let file_bytes = args.file_size.map_or(Storage::F32.file_bytes, |size| size.as_u64());
    let file = gguf_file::Imported::open(&args.file)?;
    hugging_face::save_as(&args.output, &file, Storage { dtype, file_bytes })?;
    let count = file.config().parameter_count();
    println!("{}: {count} parameters as {:?}", args.output.display(), args.kind);
    Ok(())
}
