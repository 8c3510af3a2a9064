//! `bespoke bench`: how fast an endpoint answers and a training step is, and a model and spokes to measure with.

mod drive;
mod model;
mod serve;
mod spoke;
mod table;
mod train;

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Measure an endpoint of the OpenAI API, alone or against another one
    Serve(serve::Args),
    /// Write a stand-in: a model with the shape of a real one and random weights
    Model(model::Args),
    /// Write a stand-in of a spoke: one with the shape of a trained one and random weights
    Spoke(spoke::Args),
    /// Measure training steps of a model's shape on this machine
    Train(train::Args),
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Model(args) => model::run(&args),
        Command::Spoke(args) => spoke::run(&args),
        Command::Train(args) => train::run(&args),
    }
}
