//! `bespoke data`: generates training data, and checks it before training.

mod distil;

use std::collections::{BTreeMap, HashSet};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::atomic_file::Staged;
use crate::task::dataset::{self, Record};
use crate::task::generator::{Generator, Limits, Split};
use crate::task::overlap::{Overlap, Seen};
use crate::task::schema::{Encoding, encoding_faults};

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Generate rows: the same seed gives the same rows
    Generate(Generate),
    /// Check a training and an evaluation file: valid answers, little overlap
    Check(Check),
    /// Cache the outputs of a recipe's teacher for all its rows, for `distil.stored`
    Distil(distil::Args),
}

/// What to generate.
#[derive(Debug, clap::Args)]
pub struct Generate {
    /// Which half of the facts to use
    #[arg(long, value_enum)]
    split: SplitName,
    /// Seed of the generator
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of rows
    #[arg(long)]
    rows: u64,
    /// Number of the first row
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Write to this file instead of stdout
    #[arg(long)]
    out: Option<PathBuf>,
    /// Maximum characters of an event
    #[arg(long, default_value_t = Limits::default().max_event_chars)]
    max_event_chars: usize,
    /// Write events without answers: {id, raw_input, source, type}
    #[arg(long)]
    events_only: bool,
}

/// A split, as the command line names it.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum SplitName {
    Train,
    Eval,
}

/// What to check.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Training rows
    train: PathBuf,
    /// Evaluation rows
    eval: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Largest mean share of an evaluation event's 8-grams that may occur in training.
const MEAN_BOUND: f64 = 0.02;
/// Largest share of evaluation events with more than half of their 8-grams in training.
const ABOVE_HALF_BOUND: f64 = 0.01;

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Generate(args) => generate(&args),
        Command::Check(args) => check(&args),
        Command::Distil(args) => distil::run(&args),
    }
}

fn generate(args: &Generate) -> anyhow::Result<()> {
    match &args.out {
        Some(path) => {
            let mut staged =
                Staged::new(path).with_context(|| format!("{}: can't be written", path.display()))?;
            write_rows(args, &mut BufWriter::new(&mut staged))?;
            staged.commit().with_context(|| format!("{}: can't be written", path.display()))
        }
        None => match write_rows(args, &mut BufWriter::new(std::io::stdout().lock())) {
            // The reader closed the pipe (`| head`).
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written.context("stdout: can't be written"),
        },
    }
}

fn write_rows(args: &Generate, to: &mut impl Write) -> std::io::Result<()> {
    let split = match args.split {
        SplitName::Train => Split::Train,
        SplitName::Eval => Split::Eval,
    };
    let generator =
        Generator::new(args.seed, split).with_limits(Limits { max_event_chars: args.max_event_chars });
    for index in args.first..args.first.saturating_add(args.rows) {
        let row = generator.row(index);
        if args.events_only {
            let event = EventLine {
                id: &row.id,
                raw_input: &row.event.content,
                source: &row.event.source,
                kind: &row.event.kind,
            };
            serde_json::to_writer(&mut *to, &event)?;
            to.write_all(b"\n")?;
        } else {
            dataset::write_record(to, &Record::new(row, split))?;
        }
    }
    to.flush()
}

/// A row of `--events-only`.
#[derive(Serialize)]
struct EventLine<'a> {
    id: &'a str,
    raw_input: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
}

/// The result of `check`.
#[derive(Debug, Serialize)]
struct Report {
    train: FileReport,
    eval: FileReport,
    overlap: Overlap,
    shared_ids: usize,
    problems: Vec<String>,
}

/// Statistics of one file.
#[derive(Debug, Default, Serialize)]
struct FileReport {
    rows: usize,
    kinds: BTreeMap<String, usize>,
    invalid_answers: usize,
    first_invalid: Option<String>,
    duplicate_events: usize,
    /// Characters of events: median, 95th percentile, maximum.
    event_chars: [usize; 3],
    /// The same for whole rows (all messages).
    row_chars: [usize; 3],
}

/// Reads a file once and passes each record to `see`.
fn survey(path: &Path, mut see: impl FnMut(&Record)) -> anyhow::Result<FileReport> {
    let mut report = FileReport::default();
    let (mut events, mut rows) = (Vec::new(), Vec::new());
    let mut distinct = HashSet::new();
    for record in dataset::read(path)? {
        let record = record?;
        report.rows += 1;
        *report.kinds.entry(record.kind.clone()).or_default() += 1;
        events.push(record.event.content.chars().count());
        rows.push(record.messages.iter().map(|message| message.content.chars().count()).sum());
        if !distinct.insert(record.event.clone()) {
            report.duplicate_events += 1;
        }
        if let Some(fault) = fault(&record) {
            report.invalid_answers += 1;
            report.first_invalid.get_or_insert(format!("row {}: {fault}", record.id));
        }
        see(&record);
    }
    report.event_chars = spread(&mut events);
    report.row_chars = spread(&mut rows);
    Ok(report)
}

/// What is wrong with a record's answer.
fn fault(record: &Record) -> Option<String> {
    let answer = record.answer()?;
    match serde_json::from_str::<Encoding>(answer) {
        Ok(encoding) => encoding_faults(&encoding).into_iter().next(),
        Err(error) => Some(error.to_string()),
    }
}

fn spread(values: &mut [usize]) -> [usize; 3] {
    values.sort_unstable();
    let at =
        |share: f64| values.get(((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1)));
    [0.5, 0.95, 1.0].map(|share| at(share).copied().unwrap_or(0))
}

fn check(args: &Check) -> anyhow::Result<()> {
    let mut seen = Seen::default();
    let mut ids = HashSet::new();
    let train = survey(&args.train, |record| {
        seen.add(&record.event.content);
        ids.insert(record.id.clone());
    })?;
    let mut held_out = Vec::new();
    let eval = survey(&args.eval, |record| held_out.push((record.id.clone(), record.event.content.clone())))?;
    let overlap = seen.overlap(held_out.iter().map(|(id, text)| (id.as_str(), text.as_str())));
    let shared_ids = held_out.iter().filter(|(id, _)| ids.contains(id)).count();
    let report = Report { problems: problems(&train, &eval, &overlap), train, eval, overlap, shared_ids };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report, args);
    }
    if report.problems.is_empty() { Ok(()) } else { bail!("{}", report.problems.join("; ")) }
}

fn problems(train: &FileReport, eval: &FileReport, overlap: &Overlap) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, file) in [("train", train), ("eval", eval)] {
        if file.rows == 0 {
            problems.push(format!("{name} has no rows"));
        }
        if let Some(first) = &file.first_invalid {
            problems
                .push(format!("{name} has {} invalid answers, the first in {first}", file.invalid_answers));
        }
    }
    if overlap.mean > MEAN_BOUND {
        problems.push(format!("mean overlap is {:.4}; at most {MEAN_BOUND} is allowed", overlap.mean));
    }
    if overlap.above_half > ABOVE_HALF_BOUND {
        let share = overlap.above_half;
        problems.push(format!(
            "{share:.4} of the eval rows have more than half of their 8-grams in train; at most {ABOVE_HALF_BOUND} is allowed"
        ));
    }
    problems
}

fn print(report: &Report, args: &Check) {
    let mut table = super::table::plain(&["", "train", "eval"]);
    let (train, eval) = (&report.train, &report.eval);
    let mut add = |name: &str, a: String, b: String| {
        table.add_row([name.to_owned(), a, b]);
    };
    let three = |[median, most_of, most]: [usize; 3]| format!("{median} / {most_of} / {most}");
    add("rows", train.rows.to_string(), eval.rows.to_string());
    add("invalid answers", train.invalid_answers.to_string(), eval.invalid_answers.to_string());
    add("repeated events", train.duplicate_events.to_string(), eval.duplicate_events.to_string());
    add("event characters (p50 / p95 / most)", three(train.event_chars), three(eval.event_chars));
    add("row characters (p50 / p95 / most)", three(train.row_chars), three(eval.row_chars));
    let names: std::collections::BTreeSet<&String> = train.kinds.keys().chain(eval.kinds.keys()).collect();
    for name in names {
        let count = |file: &FileReport| file.kinds.get(name).copied().unwrap_or(0).to_string();
        add(&format!("kind {name}"), count(train), count(eval));
    }
    println!("{table}");
    let Overlap { mean, above_half, contained, short, short_repeated, worst, .. } = &report.overlap;
    println!(
        "8-grams of {} found in {}: mean {:.3} %, more than half in {:.3} % of the rows, all in {:.3} %",
        args.eval.display(),
        args.train.display(),
        mean * 100.0,
        above_half * 100.0,
        contained * 100.0
    );
    println!(
        "{short} rows have fewer than eight words; {:.1} % of them occur in training",
        short_repeated * 100.0
    );
    for (id, share) in worst {
        println!("  {id}: {:.1} %", share * 100.0);
    }
}
