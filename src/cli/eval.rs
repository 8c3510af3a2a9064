//! `bespoke eval`.

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {}
}
