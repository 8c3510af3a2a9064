//! `bespoke spoke rm`: removes a spoke's file from the folder; the daemon then retires it.

use anyhow::{Context, bail};
use serde_json::json;

use super::add::Destination;
use crate::cli::client::Daemon;
use crate::spokes::folder::{self, spoke_name};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Destination,
    #[command(flatten)]
    daemon: Daemon,
    /// Name that it is served under
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs the command.
///
/// # Errors
/// Neither a file nor a spoke that was loaded by request has this name.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.place.folder()?;
    let listing = folder::list(&folder).with_context(|| folder.display().to_string());
    let entries = listing.as_ref().map(|listing| listing.entries.keys());
    let own = |entry: &&String| spoke_name(entry) == Ok(&args.name);
    let entries: Vec<String> = entries.into_iter().flatten().filter(own).cloned().collect();
    for entry in &entries {
        let path = folder.join(entry);
        if path.is_dir() && !path.is_symlink() {
            fs_err::remove_dir_all(&path)?;
        } else {
            fs_err::remove_file(&path)?;
        }
        println!("removed {}", path.display());
    }
    if !entries.is_empty() {
        return Ok(());
    }
    let client = args.daemon.client()?;
    let rows = client.get("/v1/spokes")?;
    let rows = rows["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    match rows.iter().find(|row| row["name"] == args.name.as_str()) {
        Some(row) if row["file"].is_null() => {
            client.tell("/v1/unload_lora_adapter", &json!({"lora_name": args.name}))?;
            println!("unloaded {}", args.name);
            Ok(())
        }
        Some(row) => bail!(
            "{} is not in {}: it is in another folder, that of the daemon",
            row["file"],
            folder.display()
        ),
        None => bail!("no spoke is named {:?}, neither in {} nor by the daemon", args.name, folder.display()),
    }
}
