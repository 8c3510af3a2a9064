//! `bespoke spoke import`: splits a file that contains a post and a Felix spoke.

use std::path::PathBuf;

use super::show::format;
use crate::adapter::{self, Limits, Split};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file with the keys {arch}.num_spokes and {arch}.spoke_rank
    #[arg(value_name = "MERGED.gguf")]
    file: PathBuf,
    /// Where to write the post
    #[arg(long, value_name = "FILE")]
    post_out: PathBuf,
    /// Where to write the spoke
    #[arg(long, value_name = "FILE")]
    spoke_out: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A file without a spoke, or whose rest is no model; I/O errors.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Split { post, spoke } =
        adapter::split(&args.file, &args.post_out, &args.spoke_out, &Limits::default())?;
    let (architecture, layers, sha256) = (&post.architecture, post.layers, post.identity());
    println!("{}: a {architecture} of {layers} blocks, content {sha256}", args.post_out.display());
    let blocks = spoke.layers.len();
    println!("{}: {} after {blocks} blocks", args.spoke_out.display(), format(spoke.format));
    Ok(())
}
