//! `bespoke runs`: training runs as lists, tables and loss curves.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use super::table::plain;
use crate::atomic_file;
use crate::train::log::{self, SPEED, Speed, Step};
use crate::train::loss_curve;
use crate::train::recipe::Recipe;

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// All runs of a folder
    List(List),
    /// One run: its evaluations and its loss curve
    Show(Show),
    /// Two runs beside each other
    Compare(Compare),
}

/// Where runs are.
#[derive(Debug, clap::Args)]
pub struct RunsArgs {
    /// Folder of runs
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    shared: RunsArgs,
}

/// Arguments of `show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The run: its folder's name below `--runs`, or a path
    id: String,
    #[command(flatten)]
    shared: RunsArgs,
    /// Draw the loss curves, raw and smoothed
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub struct Compare {
    /// A run
    a: String,
    /// Another
    b: String,
    #[command(flatten)]
    shared: RunsArgs,
    /// Draw the loss curves of both, raw and smoothed
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

/// What a run's folder says.
#[derive(Debug, Serialize)]
struct Run {
    id: String,
    /// `running or interrupted`, `finished`, `stopped early`
    state: &'static str,
    steps: u64,
    of: u64,
    tokens: u64,
    seconds: f64,
    tokens_per_s: f64,
    loss: Option<f64>,
    /// Training loss, smoothed.
    smoothed: Option<f64>,
    held_out: Option<f64>,
    best: Option<(f64, u64)>,
    #[serde(skip)]
    log: Vec<Step>,
    #[serde(skip)]
    recipe: Recipe,
}

/// Runs the command.
///
/// # Errors
/// Folders that are no runs, files that can't be read or written.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List(args) => list(&args.shared),
        Command::Show(args) => show(args),
        Command::Compare(args) => compare(args),
    }
}

impl Run {
    fn open(folder: &Path, id: String) -> anyhow::Result<Self> {
        let path = folder.join("recipe.toml");
        if !path.exists() {
            bail!("{}: no run: it has no recipe.toml", folder.display());
        }
        let text = fs_err::read_to_string(&path)?;
        let recipe: Recipe = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let log = log::read(folder)?;
        let speeds: Vec<Speed> = log::read_lines(&folder.join(SPEED))?;
        let seconds = speeds.last().map_or(0.0, |speed| speed.seconds);
        let last = log.last();
        let (steps, tokens) = last.map_or((0, 0), |step| (step.step, step.tokens));
        let evals = || log.iter().filter_map(|step| Some((step.eval?.loss, step.step)));
        // What is written last says that all of it was.
        let done = ["model.safetensors", "adapter.safetensors", "adapter/adapter_config.json"];
        let done = done.iter().any(|name| folder.join(name).exists()) && folder.join("loss.svg").exists();
        let of = recipe.train.steps;
        let state = match (done, steps >= of) {
            (true, true) => "finished",
            (true, false) if recipe.train.stop.is_some() => "stopped early",
            _ => "running or interrupted",
        };
        Ok(Self {
            id,
            state,
            steps,
            of,
            tokens,
            seconds,
            tokens_per_s: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
            loss: last.map(|step| step.loss),
            smoothed: loss_curve::smoothed(&log).last().map(|(_, loss)| *loss),
            held_out: evals().next_back().map(|(loss, _)| loss),
            best: evals().min_by(|a, b| a.0.total_cmp(&b.0)),
            log,
            recipe,
        })
    }

    /// The run of an id: a name below the folder of runs, or a path.
    fn find(shared: &RunsArgs, id: &str) -> anyhow::Result<Self> {
        let below = shared.runs.join(id);
        let folder = if below.is_dir() { below } else { PathBuf::from(id) };
        if !folder.is_dir() {
            let known = names(&shared.runs)?;
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            bail!("{id}: no such run; {} has: {known}", shared.runs.display());
        }
        Self::open(&folder, id.to_owned())
    }
}

/// Folders of runs that are runs, sorted; none before the first run made the folder.
fn names(runs: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs_err::read_dir(runs) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.path().join("recipe.toml").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// One of a list: what its folder says, or why it says nothing.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Listed {
    Run(Box<Run>),
    Unreadable { id: String, error: String },
}

/// A folder that can't be read keeps nobody from the others.
fn list(shared: &RunsArgs) -> anyhow::Result<()> {
    let open = |name: String| match Run::open(&shared.runs.join(&name), name.clone()) {
        Ok(run) => Listed::Run(run.into()),
        Err(error) => Listed::Unreadable { id: name, error: super::told(&error).join(": ") },
    };
    let runs: Vec<Listed> = names(&shared.runs)?.into_iter().map(open).collect();
    if shared.json {
        println!("{}", serde_json::to_string(&runs)?);
        return Ok(());
    }
    let mut table =
        plain(&["run", "state", "steps", "tokens", "loss", "held out", "best", "at step", "time"]);
    for run in &runs {
        let run = match run {
            Listed::Run(run) => run,
            Listed::Unreadable { id, error } => {
                eprintln!("{id}: {error}");
                table.add_row([id, "unreadable"]);
                continue;
            }
        };
        table.add_row([
            run.id.clone(),
            run.state.to_owned(),
            format!("{}/{}", run.steps, run.of),
            millions(run.tokens),
            four(run.smoothed),
            four(run.held_out),
            four(run.best.map(|(loss, _)| loss)),
            run.best.map_or_else(dash, |(_, step)| step.to_string()),
            time(run.seconds),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn show(args: &Show) -> anyhow::Result<()> {
    let run = Run::find(&args.shared, &args.id)?;
    draw(args.svg.as_deref(), &[&run])?;
    if args.shared.json {
        let evaluations: Vec<&Step> = run.log.iter().filter(|step| step.eval.is_some()).collect();
        println!("{}", serde_json::json!({"run": run, "recipe": run.recipe, "evaluations": evaluations}));
        return Ok(());
    }
    println!(
        "{}: {}, {} of {} steps, {} tokens, {} at {:.0} tokens/s",
        run.id,
        run.state,
        run.steps,
        run.of,
        millions(run.tokens),
        time(run.seconds),
        run.tokens_per_s
    );
    let smoothed = loss_curve::smoothed(&run.log);
    let mut table =
        plain(&["step", "tokens", "loss", "smoothed", "held out", "token accuracy", "whole answers"]);
    for step in &run.log {
        let Some(eval) = step.eval else { continue };
        let millions_now = step.tokens as f64 / 1e6;
        let at = smoothed.iter().rfind(|(tokens, _)| *tokens <= millions_now).map(|(_, loss)| *loss);
        table.add_row([
            step.step.to_string(),
            millions(step.tokens),
            four(Some(step.loss)),
            four(at),
            four(Some(eval.loss)),
            format!("{:.2} %", eval.accuracy * 100.0),
            format!("{:.1} %", eval.exact * 100.0),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn compare(args: &Compare) -> anyhow::Result<()> {
    let (a, b) = (Run::find(&args.shared, &args.a)?, Run::find(&args.shared, &args.b)?);
    draw(args.svg.as_deref(), &[&a, &b])?;
    let (mine, theirs) = (a.recipe.to_toml(), b.recipe.to_toml());
    let differences = differences(&mine, &theirs)?;
    if args.shared.json {
        println!("{}", serde_json::json!({"a": a, "b": b, "recipes": differences}));
        return Ok(());
    }
    let mut table = plain(&["", a.id.as_str(), b.id.as_str()]);
    type Cell = fn(&Run) -> String;
    let rows: [(&str, Cell); 8] = [
        ("state", |run| run.state.to_owned()),
        ("steps", |run| format!("{}/{}", run.steps, run.of)),
        ("tokens", |run| millions(run.tokens)),
        ("loss, smoothed", |run| four(run.smoothed)),
        ("held out", |run| four(run.held_out)),
        ("best held out", |run| four(run.best.map(|(loss, _)| loss))),
        ("time", |run| time(run.seconds)),
        ("tokens/s", |run| format!("{:.0}", run.tokens_per_s)),
    ];
    for (name, value) in rows {
        table.add_row([name.to_owned(), value(&a), value(&b)]);
    }
    for Difference { key, a, b } in &differences {
        table.add_row([key, a, b]);
    }
    let losses = |run: &Run| -> Vec<(u64, f64)> {
        run.log.iter().filter_map(|step| Some((step.step, step.eval?.loss))).collect()
    };
    for (step, loss) in losses(&a) {
        if let Some((_, other)) = losses(&b).into_iter().find(|(found, _)| *found == step) {
            table.add_row([format!("held out at step {step}"), four(Some(loss)), four(Some(other))]);
        }
    }
    println!("{table}");
    Ok(())
}

/// A key in which two recipes differ.
#[derive(Debug, Serialize)]
struct Difference {
    key: String,
    a: String,
    b: String,
}

fn differences(a: &str, b: &str) -> anyhow::Result<Vec<Difference>> {
    let (a, b): (toml::Value, toml::Value) = (toml::from_str(a)?, toml::from_str(b)?);
    let mut found = Vec::new();
    differ("", Some(&a), Some(&b), &mut found);
    Ok(found)
}

fn differ(key: &str, a: Option<&toml::Value>, b: Option<&toml::Value>, found: &mut Vec<Difference>) {
    if a == b {
        return;
    }
    if let (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) = (a, b) {
        let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
        keys.sort();
        keys.dedup();
        for inner in keys {
            let path = if key.is_empty() { inner.clone() } else { format!("{key}.{inner}") };
            differ(&path, a.get(inner), b.get(inner), found);
        }
        return;
    }
    let text = |value: Option<&toml::Value>| value.map_or_else(dash, ToString::to_string);
    found.push(Difference { key: key.to_owned(), a: text(a), b: text(b) });
}

fn draw(path: Option<&Path>, runs: &[&Run]) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let name = |run: &Run| if runs.len() > 1 { run.id.clone() } else { String::new() };
    let names: Vec<String> = runs.iter().map(|run| name(run)).collect();
    let runs = runs.iter().zip(&names).map(|(run, name)| loss_curve::Run { name, steps: &run.log });
    let drawn = loss_curve::svg(&runs.collect::<Vec<_>>());
    atomic_file::write(path, drawn.as_bytes()).with_context(|| path.display().to_string())
}

fn dash() -> String {
    "-".to_owned()
}

fn four(value: Option<f64>) -> String {
    value.map_or_else(dash, |value| format!("{value:.4}"))
}

fn millions(count: u64) -> String {
    format!("{:.2}M", count as f64 / 1e6)
}

fn time(seconds: f64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds as u64)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_differ_by_key() {
        let found =
            differences("[a]\nx = 1\ny = 2\n[a.z]\nw = 1\n", "[a]\nx = 1\ny = 3\n[a.z]\nw = 1\nv = \"t\"\n");
        let keys: Vec<(String, String, String)> =
            found.unwrap().into_iter().map(|d| (d.key, d.a, d.b)).collect();
        let expected = [("a.y", "2", "3"), ("a.z.v", "-", "\"t\"")];
        assert_eq!(keys, expected.map(|(k, a, b)| (k.to_owned(), a.to_owned(), b.to_owned())));
    }
}
