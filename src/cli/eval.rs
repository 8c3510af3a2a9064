//! `bespoke eval`: scores answers, and evaluates a model through its daemon.

mod run;
mod score;
mod table;
mod task;

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Send events to the daemon and judge its answers
    Run(run::Args),
    /// Score existing answers: rows {id, raw_input, output}
    Score(score::Args),
    /// Send held-out rows of the synthesis or retrieval task to the daemon and judge its answers
    Task(task::Args),
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Task(args) => task::run(&args),
    }
}
