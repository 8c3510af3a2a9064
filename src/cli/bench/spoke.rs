//! `bespoke bench spoke`: writes a synthetic spoke.

use std::path::PathBuf;

use bytesize::ByteSize;

use crate::adapter::{Kind, Post, synthetic_model};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The post that the spoke is for
    #[arg(value_name = "POST.gguf")]
    post: PathBuf,
    /// The GGUF file to write
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,
    /// Kind of the spoke
    #[arg(long, value_enum, default_value_t = Kind::Lora)]
    kind: Kind,
    /// Rank of each pair of a LoRA, or of each of the four bottlenecks of a Felix spoke [default:
    /// 16, or 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    rank: Option<u32>,
    /// Seed of the weights: the same seed gives the same file
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// A post that can't be read, a rank beyond the limits, I/O errors.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let post = Post::open(&args.post)?;
    let rank = args.rank.unwrap_or(match args.kind {
        Kind::Lora => 16,
        Kind::Felix => 64,
    });
    let written = synthetic_model::write(args.kind, rank, args.seed, &post, &args.out)?;
    let (kind, bytes) = (written.kind(), ByteSize(written.resident_bytes).display().iec());
    eprintln!("{}: a {kind} spoke of rank {rank} after {} blocks, {bytes}", args.out.display(), post.layers);
    Ok(())
}
