//! `bespoke spoke`: look at a spoke's file, and write it in another format.

mod convert;
mod import;
mod show;

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Say what a spoke's file holds, and whether it fits a post
    Show(show::Args),
    /// Write a spoke in another format
    Convert(convert::Args),
    /// Split a file that is post and Felix spoke in one
    Import(import::Args),
}

/// Runs the command.
///
/// # Errors
/// Why a file is no spoke, or can't be converted; the disk.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Show(args) => show::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Import(args) => import::run(&args),
    }
}
