//! `bespoke doctor`: checks whether this machine has what the daemon needs.
//!
//! Each check sees what the daemon would see, whether one is running or not, and gives one item:
//! ok, warning or failure.

mod build;
mod folders;
mod limits;
mod processor;
mod served;

use std::path::PathBuf;

use serde::Serialize;

use crate::config::{self, DEFAULT_CONFIG, Overrides, Settings};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration of the daemon [default: config/bespoke.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "BESPOKE_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// All is well.
    Ok,
    /// The daemon runs, but not as well as it could.
    Warning,
    /// The daemon can't run, or can't do everything that it should.
    Failure,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Item {
    name: &'static str,
    state: State,
    /// What was found, in words.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// The same for programs.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    details: serde_json::Value,
}

impl Item {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { name, state, found: found.into(), hint: None, details: serde_json::Value::Null }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, State::Ok, found)
    }

    fn warning(name: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..Self::new(name, State::Warning, found) }
    }

    fn failure(name: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..Self::new(name, State::Failure, found) }
    }

    fn with(self, details: serde_json::Value) -> Self {
        Self { details, ..self }
    }
}

/// Runs the command.
///
/// # Errors
/// A check failed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let items = examine(args);
    let worst = items.iter().map(|item| item.state).max().unwrap_or(State::Ok);
    if args.json {
        let answer = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": worst,
            "items": items,
        });
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print!("{}", in_words(&items));
    }
    let failures = items.iter().filter(|item| item.state == State::Failure).count();
    anyhow::ensure!(failures == 0, "{failures} of {} checks failed", items.len());
    Ok(())
}

fn examine(args: &Args) -> Vec<Item> {
    let (settings, configuration) = configuration(args);
    let mut items = vec![processor::features(), build::program(), build::allocator(), configuration];
    items.push(limits::inotify());
    let Some(settings) = settings else { return items };
    items.push(limits::memory(&settings));
    items.push(limits::files(&settings));
    items.push(folders::state(&settings));
    items.push(folders::spokes(&settings));
    let daemon = served::Daemon::find(&settings);
    items.push(daemon.port());
    items.push(served::model(&settings));
    items.push(daemon.kernels(&settings));
    items.push(folders::last_run(&settings));
    items
}

/// The settings, if they are valid, and the item of their file.
fn configuration(args: &Args) -> (Option<Settings>, Item) {
    const NAME: &str = "configuration";
    match config::load(args.config.as_deref(), Overrides::default()) {
        Ok(settings) => {
            let found = match &args.config {
                Some(path) => path.display().to_string(),
                None => format!("{DEFAULT_CONFIG} if it exists, else the defaults"),
            };
            (Some(settings), Item::ok(NAME, found))
        }
        Err(error) => {
            let hint = "the other checks need a valid configuration";
            (None, Item::failure(NAME, error.to_string(), hint))
        }
    }
}

/// A line for each item, with its hint below.
fn in_words(items: &[Item]) -> String {
    use std::fmt::Write;
    let width = items.iter().map(|item| item.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for item in items {
        let state = match item.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Failure => "failure",
        };
        let found = item.found.replace('\n', "\n    ");
        let _ = writeln!(text, "{state:<8} {:<width$}  {found}", item.name);
        if let Some(hint) = &item.hint {
            let _ = writeln!(text, "{:9}{:width$}  hint: {hint}", "", "");
        }
    }
    text
}

/// Bytes in human-readable form.
fn bytes(count: u64) -> String {
    bytesize::ByteSize(count).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_lines_and_hints_stand_under_them() {
        let items = [
            Item::ok("memory", "8 GiB available"),
            Item::warning("state folder", "a write takes 40 ms", "a faster disk"),
            Item::failure("port", "127.0.0.1:8899: another program answers", "server.listen"),
        ];
        insta::assert_snapshot!(in_words(&items), @r"
        ok       memory        8 GiB available
        warning  state folder  a write takes 40 ms
                               hint: a faster disk
        failure  port          127.0.0.1:8899: another program answers
                               hint: server.listen
        ");
    }
}
