//! `bespoke bench`: measures endpoints and training steps, and writes synthetic models and spokes
//! to measure with.

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
    /// Write a synthetic model: the shape of a real one with random weights
    Model(model::Args),
    /// Write a synthetic spoke: the shape of a trained one with random weights
    Spoke(spoke::Args),
    /// Measure the speed of training steps on this machine
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
