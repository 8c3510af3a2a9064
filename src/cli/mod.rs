//! The command line: one file per subcommand, each with its `Args` and `run`.

pub mod bench;
pub mod client;
pub mod data;
pub mod doctor;
pub mod encode;
pub mod eval;
pub mod export;
pub mod import;
pub mod runs;
pub mod self_test;
pub mod serve;
pub mod spoke;
pub mod spokes;
pub mod table;
pub mod train;

use std::panic;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::adapter::Refusal;
use crate::cpu_features;
use crate::engine::ffi::{end, missing_features};
use crate::model::FileError;
use crate::train::TrainError;

/// Done.
pub const DONE: u8 = 0;
/// Failed.
pub const FAILED: u8 = 1;
/// Wrong usage (clap's own code).
pub const USAGE: u8 = 2;
/// The reader of our output is gone (the shell's code for SIGPIPE).
pub const READER_GONE: u8 = 141;
/// Wrong configuration, so a retry can't help (EX_CONFIG of sysexits).
pub const CONFIG: u8 = 78;

/// Makes, serves and keeps improving a small language model of your own.
#[derive(Debug, Parser)]
#[command(name = "bespoke", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model over the OpenAI API
    Serve(serve::Args),
    /// Turn a raw event into a memory, through the running daemon
    Encode(encode::Args),
    /// Train a model from a recipe
    Train(train::Args),
    /// Show training runs: lists, tables, loss curves
    #[command(subcommand)]
    Runs(runs::Command),
    /// Convert a Hugging Face folder to a GGUF file
    Export(export::Args),
    /// Convert a GGUF file to a Hugging Face folder
    Import(import::Args),
    /// List the spokes of the running daemon
    Spokes(spokes::Args),
    /// Inspect spokes, convert them, and change what is served
    #[command(subcommand)]
    Spoke(spoke::Command),
    /// Check whether this machine has what the daemon needs
    Doctor(doctor::Args),
    /// Test the kernels with a model, as the daemon does before it serves
    #[command(hide = true)]
    SelfTest(self_test::Args),
    /// Evaluate a model
    #[command(subcommand)]
    Eval(eval::Command),
    /// Measure speed
    #[command(subcommand)]
    Bench(bench::Command),
    /// Generate and check training data
    #[command(subcommand)]
    Data(data::Command),
}

/// An error in the configuration: exit code 78.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongConfiguration(pub String);

/// Parses the arguments. If `COLUMNS` is 0, as on some terminals, help is formatted for 80
/// columns.
fn parsed() -> Cli {
    let mut command = Cli::command();
    if std::env::var("COLUMNS").is_ok_and(|columns| columns.trim() == "0") {
        command = command.term_width(table::COLUMNS.into());
    }
    match Cli::from_arg_matches(&command.get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    }
}

/// Parses the arguments, runs the command and prints errors.
pub fn main() -> ! {
    let cli = parsed();
    if let Err(error) = cpu_features::check() {
        eprintln!("error: {error}");
        end(CONFIG);
    }
    let missing = missing_features();
    if !missing.is_empty() {
        // Otherwise an illegal instruction may follow, without any message.
        eprintln!(
            "warning: this program was compiled for a processor with {}, which this one doesn't have\nhint: run `make` on this machine, or `make portable`",
            missing.join(", ")
        );
    }
    if !matches!(cli.command, Command::Serve(_)) {
        end_with_the_reader();
    }
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Encode(args) => encode::run(args),
        Command::Train(args) => train::run(args),
        Command::Runs(command) => runs::run(&command),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Spokes(args) => spokes::run(&args),
        Command::Spoke(command) => spoke::run(command),
        Command::Doctor(args) => doctor::run(&args),
        Command::SelfTest(args) => self_test::run(&args),
        Command::Eval(command) => eval::run(command),
        Command::Bench(command) => bench::run(command),
        Command::Data(command) => data::run(command),
    };
    end(match result {
        Ok(()) => DONE,
        Err(error) => {
            report(&error);
            if error.is::<WrongConfiguration>() { CONFIG } else { FAILED }
        }
    })
}

/// The reader of our output may close the pipe (`| head`); that is no failure to report.
fn end_with_the_reader() {
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            end(READER_GONE);
        }
        told(panic);
    }));
}

/// The messages of an error and its causes, each once: many messages include that of their cause.
pub(crate) fn told(error: &anyhow::Error) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for text in error.chain().map(ToString::to_string) {
        if said.iter().any(|before| says(before, &text)) {
            continue;
        }
        match said.last_mut().filter(|before| says(&text, before)) {
            Some(before) => *before = text,
            None => said.push(text),
        }
    }
    said
}

/// Whether a text contains another one as whole words.
fn says(whole: &str, part: &str) -> bool {
    let part = part.trim().trim_end_matches('.');
    if part.is_empty() {
        return true;
    }
    let ends_word = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    whole.match_indices(part).any(|(at, _)| {
        ends_word(whole[..at].chars().next_back()) && ends_word(whole[at + part.len()..].chars().next())
    })
}

/// Prints an error with its causes, one per line, and a hint.
fn report(error: &anyhow::Error) {
    let said = told(error);
    eprintln!("error: {}", said[0]);
    for cause in &said[1..] {
        eprintln!("  caused by: {cause}");
    }
    let refusal = error.downcast_ref::<Refusal>();
    if let Some(refusal) = refusal {
        eprintln!("  code: {}", refusal.code());
    }
    let of_file = || error.chain().find_map(|cause| cause.downcast_ref::<FileError>()?.hint());
    let of_run = || error.chain().find_map(|cause| cause.downcast_ref::<TrainError>()?.hint());
    let hint = refusal.and_then(Refusal::hint);
    if let Some(hint) = hint.or_else(|| of_file().or_else(of_run).map(str::to_owned)) {
        eprintln!("\nhint: {hint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_and_its_causes_say_each_thing_once() {
        let of = |lines: &[&'static str]| {
            let mut lines = lines.iter().rev();
            let first = anyhow::anyhow!(*lines.next().unwrap());
            told(&lines.fold(first, |error, line| error.context(*line)))
        };
        assert_eq!(of(&["can't read x", "not found"]), ["can't read x", "not found"]);
        assert_eq!(of(&["not found", "not found", "not found."]), ["not found"]);
        assert_eq!(of(&["x: not found", "not found"]), ["x: not found"]);
        assert_eq!(of(&["can't read x", "can't read x: not found"]), ["can't read x: not found"]);
        assert_eq!(of(&["a: b: c", "b: c", "c"]), ["a: b: c"]);
        // The letters match but the words don't.
        assert_eq!(of(&["error 28", "error 2"]), ["error 28", "error 2"]);
        assert_eq!(of(&["cannot", "not"]), ["cannot", "not"]);
        assert_eq!(of(&["", "why"]), ["why"]);
    }
}
