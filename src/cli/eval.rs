//! `bespoke eval`: judge answers, a model, and two models against each other.

mod score;
mod table;

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Score answers that a model gave before: rows {id, raw_input, output}
    Score(score::Args),
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Score(args) => score::run(&args),
    }
}
