//! `bespoke eval task`: sends held-out rows of a task to the daemon and judges the answers.

use std::collections::BTreeMap;

use anyhow::Context;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::client::{Client, Daemon};
use crate::cli::table::plain;
use crate::eval::tasks;
use crate::task::generator::{Limits, Split};
use crate::task::retrieval::Retrieval;
use crate::task::synthesis::{self, Synthesis};
use crate::text::tokenizer::Message;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// Task to judge; `eval run` judges encodings
    #[arg(value_enum)]
    task: Task,
    /// Number of held-out rows
    #[arg(long, default_value_t = 100)]
    rows: u64,
    /// Seed of the generator
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Spoke that answers; without it, the post alone
    #[arg(long, value_name = "NAME")]
    spoke: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Tasks that this command judges.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Task {
    Synthesis,
    Retrieval,
}

/// Token limit of an answer, above any right one.
const MAX_TOKENS: u32 = 400;

/// Runs the command.
///
/// # Errors
/// A daemon that doesn't answer or has no such spoke.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let client = args.daemon.client()?;
    let bar = ProgressBar::new(args.rows);
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for row in 0..args.rows {
        for (name, score) in judged(args, &client, row).with_context(|| format!("row {row}"))? {
            *sums.entry(name).or_default() += score;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let means: BTreeMap<String, f64> =
        sums.into_iter().map(|(name, sum)| (name, sum / args.rows.max(1) as f64)).collect();
    if args.json {
        let spoke = args.spoke.as_deref();
        println!(
            "{}",
            json!({"task": format!("{:?}", args.task).to_lowercase(), "spoke": spoke, "rows": args.rows, "means": means})
        );
        return Ok(());
    }
    let mut table = plain(&["metric", "mean"]);
    for (name, mean) in means {
        table.add_row([name, format!("{mean:.3}")]);
    }
    println!("{table}");
    Ok(())
}

/// Sends a row and judges the answer; returns scores by name.
fn judged(args: &Args, client: &Client, row: u64) -> anyhow::Result<BTreeMap<String, f64>> {
    match args.task {
        Task::Synthesis => {
            let (memories, wording) = Synthesis::new(args.seed, Split::Eval).memories(row, Limits::default());
            let format = json!({
                "type": "json_schema",
                "json_schema": {"name": synthesis::SCHEMA_NAME, "strict": true, "schema": synthesis::schema()},
            });
            let answer = ask(args, client, &synthesis::messages(&memories, wording), Some(format))?;
            scores(&tasks::synthesis(&memories, &answer))
        }
        Task::Retrieval => {
            let asked = Retrieval::new(args.seed, Split::Eval).asked(row, Limits::default());
            let answer = ask(args, client, &asked.messages(), None)?;
            scores(&tasks::retrieval(&asked, &answer))
        }
    }
}

fn scores(scores: &impl Serialize) -> anyhow::Result<BTreeMap<String, f64>> {
    Ok(serde_json::from_value(serde_json::to_value(scores)?)?)
}

fn ask(args: &Args, client: &Client, messages: &[Message], format: Option<Value>) -> anyhow::Result<String> {
    let mut request = json!({"messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0});
    match &args.spoke {
        Some(name) => request["model"] = json!(format!("bespoke:{name}")),
        // Overrides the spoke that the configuration has for the task.
        None => request["lora"] = json!([]),
    }
    if let Some(format) = format {
        request["response_format"] = format;
    }
    let answer = client.post("/v1/chat/completions", &request)?;
    let content = answer["choices"][0]["message"]["content"].as_str();
    content.map(str::to_owned).context("the daemon's answer has no choices[0].message.content")
}
