//! `bespoke spoke rollback`, `enable` and `disable`: let the daemon change what serves under a
//! name.

use serde_json::json;

use super::add::tell;
use crate::cli::client::Daemon;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// Name that it is served under
    #[arg(value_name = "NAME")]
    name: String,
    /// Print what is served afterwards as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command; `verb` is its name in the API.
///
/// # Errors
/// The daemon refuses: the name is unknown, or there is nothing to change.
pub fn run(args: &Args, verb: &str) -> anyhow::Result<()> {
    let row = args.daemon.client()?.post(&format!("/v1/spokes/{}:{verb}", args.name), &json!({}))?;
    tell(&row, args.json);
    Ok(())
}
