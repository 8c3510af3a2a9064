//! `bespoke spoke`: inspects spokes, converts them, and changes what the daemon serves.

mod add;
mod change;
mod convert;
mod import;
mod probe;
mod rm;
mod show;

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show the properties of a spoke's file, and whether it fits a post
    Show(show::Args),
    /// Convert a spoke to another format
    Convert(convert::Args),
    /// Split a file that contains both a post and a Felix spoke
    Import(import::Args),
    /// Add a spoke to the daemon's folder and report its state
    Add(add::Args),
    /// Remove a spoke from the daemon's folder
    Rm(rm::Args),
    /// Serve the previous generation again
    Rollback(change::Args),
    /// Serve a disabled name again, or a file that was refused or rolled back
    Enable(change::Args),
    /// Stop serving a name, whatever is in the folder
    Disable(change::Args),
    /// Test a spoke on a post, as the daemon does before it loads it
    Probe(probe::Args),
}

/// Runs the command.
///
/// # Errors
/// Why a file is no spoke or can't be converted; I/O errors; errors of the daemon.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Show(args) => show::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Add(args) => add::run(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Rollback(args) => change::run(&args, "rollback"),
        Command::Enable(args) => change::run(&args, "enable"),
        Command::Disable(args) => change::run(&args, "disable"),
        Command::Probe(args) => probe::run(&args),
    }
}
