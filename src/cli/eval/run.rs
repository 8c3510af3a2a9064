//! `bespoke eval run`: sends events to the daemon as `bespoke encode` does, and judges the
//! answers.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use super::table;
use crate::atomic_file;
use crate::cli::client::{Client, Daemon, choose_spoke, encoding_request};
use crate::eval::report::{Judged, Summary};
use crate::eval::rows::{self, Pair, Probe};
use crate::eval::speed::statistics::percentile;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// Rows {id, raw_input} with optional source, type and must (texts that the answer has to
    /// contain); `-` is standard input
    #[arg(long, value_name = "FILE")]
    events: PathBuf,
    /// Maximum tokens of an answer [default: as many as fit in the context]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Spoke that answers; `post` is the post alone [default: as the daemon's configuration says]
    #[arg(long, value_name = "NAME")]
    spoke: Option<String>,
    /// Concurrent requests
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// Save the answers as rows for `bespoke eval score`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Exit with code 1 if EPR, NP, TED, SC or a row's `must` miss their targets
    #[arg(long)]
    gate: bool,
}

/// The daemon's answer to one event.
struct Answer {
    output: String,
    finish_reason: String,
    completion_tokens: u64,
    latency: Duration,
}

/// Figures of the whole run.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    summary: Summary,
    /// Answers that reached the token limit.
    ended_by_length: usize,
    latency_p50_s: f64,
    latency_p95_s: f64,
    /// Tokens of all answers per second of wall-clock time.
    tokens_per_second: f64,
    /// Rows whose answers lack a text of their `must`.
    must_missed: Vec<Missed>,
}

#[derive(Debug, Serialize)]
struct Missed {
    id: Value,
    lacks: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// Events that can't be read, a daemon that doesn't answer or refuses an event, a missed target
/// with `--gate`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let probes = rows::read_probes(&args.events)?;
    let client = args.daemon.client()?;
    let begun = Instant::now();
    let answers = ask_all(&client, &probes, args)?;
    let elapsed = begun.elapsed();
    if let Some(path) = &args.out {
        atomic_file::write(path, &saved(&probes, &answers)).with_context(|| path.display().to_string())?;
    }
    let judged: Vec<Judged> = probes.iter().zip(&answers).map(pair).map(Judged::from).collect();
    let report = Report::new(&probes, &answers, &judged, elapsed);
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    if args.gate {
        let mut missed = report.summary.missed();
        missed.extend(
            report.must_missed.iter().map(|m| format!("{} lacks {:?}", table::id_text(&m.id), m.lacks)),
        );
        anyhow::ensure!(missed.is_empty(), "missed targets: {}", missed.join("; "));
    }
    Ok(())
}

/// Requests all answers, in the order of the events; the first error ends the run.
fn ask_all(client: &Client, probes: &[Probe], args: &Args) -> anyhow::Result<Vec<Answer>> {
    let bar = ProgressBar::new(probes.len() as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} events, {eta} left").expect("a constant"),
    );
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let answers: Mutex<Vec<Option<anyhow::Result<Answer>>>> =
        Mutex::new(probes.iter().map(|_| None).collect());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(probe) = probes.get(index) else { return };
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let answer =
                ask(client, probe, args).with_context(|| format!("event {}", table::id_text(&probe.id)));
            failed.fetch_or(answer.is_err(), Ordering::Relaxed);
            answers.lock().expect("no thread panics while it stores")[index] = Some(answer);
            bar.inc(1);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.concurrency {
            scope.spawn(work);
        }
    });
    bar.finish_and_clear();
    // Events that no thread took come after the error that stopped the threads.
    answers.into_inner().expect("no thread panics while it stores").into_iter().flatten().collect()
}

fn ask(client: &Client, probe: &Probe, args: &Args) -> anyhow::Result<Answer> {
    let mut request = encoding_request(&probe.event);
    if let Some(tokens) = args.max_tokens {
        request["max_tokens"] = json!(tokens);
    }
    choose_spoke(&mut request, args.spoke.as_deref());
    let begun = Instant::now();
    let answer = client.post("/v1/chat/completions", &request)?;
    let choice = &answer["choices"][0];
    let text = |value: &Value, key: &str| {
        value.as_str().map(str::to_owned).with_context(|| format!("the daemon's answer has no {key}"))
    };
    Ok(Answer {
        output: text(&choice["message"]["content"], "choices[0].message.content")?,
        finish_reason: text(&choice["finish_reason"], "choices[0].finish_reason")?,
        completion_tokens: answer["usage"]["completion_tokens"]
            .as_u64()
            .context("the daemon's answer has no usage.completion_tokens")?,
        latency: begun.elapsed(),
    })
}

fn pair((probe, answer): (&Probe, &Answer)) -> Pair {
    Pair { id: probe.id.clone(), event: probe.event.clone(), output: answer.output.clone(), prompt: None }
}

fn saved(probes: &[Probe], answers: &[Answer]) -> Vec<u8> {
    let mut lines = String::new();
    for (Probe { id, event, .. }, answer) in probes.iter().zip(answers) {
        let row = json!({
            "id": id, "raw_input": event.content, "source": event.source, "type": event.kind,
            "output": answer.output, "finish_reason": answer.finish_reason,
            "completion_tokens": answer.completion_tokens,
        });
        lines += &row.to_string();
        lines.push('\n');
    }
    lines.into_bytes()
}

impl Report {
    fn new(probes: &[Probe], answers: &[Answer], judged: &[Judged], elapsed: Duration) -> Self {
        let mut latencies: Vec<f64> = answers.iter().map(|answer| answer.latency.as_secs_f64()).collect();
        latencies.sort_by(f64::total_cmp);
        let tokens: u64 = answers.iter().map(|answer| answer.completion_tokens).sum();
        Self {
            summary: Summary::new(judged),
            ended_by_length: answers.iter().filter(|answer| answer.finish_reason == "length").count(),
            latency_p50_s: percentile(&latencies, 50.0),
            latency_p95_s: percentile(&latencies, 95.0),
            tokens_per_second: tokens as f64 / elapsed.as_secs_f64().max(1e-9),
            must_missed: probes.iter().zip(answers).filter_map(missed).collect(),
        }
    }
}

fn missed((probe, answer): (&Probe, &Answer)) -> Option<Missed> {
    let output = answer.output.to_lowercase();
    let lacks: Vec<String> =
        probe.must.iter().filter(|term| !output.contains(&term.to_lowercase())).cloned().collect();
    (!lacks.is_empty()).then(|| Missed { id: probe.id.clone(), lacks })
}

fn print(report: &Report) {
    println!("{}", table::summary(&report.summary));
    println!("reached the token limit: {} of {}", report.ended_by_length, report.summary.rows);
    println!(
        "latency p50 {:.2} s, p95 {:.2} s; {:.0} tokens/s",
        report.latency_p50_s, report.latency_p95_s, report.tokens_per_second
    );
    for worst in &report.summary.worst {
        println!("worst {}: EPR {:.3}; {}", table::id_text(&worst.id), worst.epr, worst.reasons.join("; "));
    }
    for missed in &report.must_missed {
        println!("{} lacks {:?}", table::id_text(&missed.id), missed.lacks);
    }
}
