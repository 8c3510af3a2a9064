//! `bespoke eval score`: scores rows of answers.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use super::table;
use crate::eval::Scores;
use crate::eval::report::{Judged, Summary};
use crate::eval::rows;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Rows {id, raw_input, output} with optional prompt, source and type; `-` is standard input
    #[arg(value_name = "PAIRS.jsonl")]
    pairs: PathBuf,
    /// Print a row of metrics for each pair
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ScoredRow<'a> {
    id: &'a Value,
    #[serde(flatten)]
    scores: Scores,
}

/// Runs the command.
///
/// # Errors
/// A row that can't be read.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let pairs = rows::read_pairs(&args.pairs)?;
    let judged: Vec<Judged> = pairs.into_iter().map(Judged::from).collect();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let written = if args.json { write_rows(&judged, &mut out) } else { write_table(&judged, &mut out) };
    match written.and_then(|()| out.flush()) {
        // The reader closed the pipe (`| head`).
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("stdout: can't be written"),
    }
}

fn write_rows(judged: &[Judged], out: &mut impl Write) -> std::io::Result<()> {
    for Judged { id, judgement, .. } in judged {
        serde_json::to_writer(&mut *out, &ScoredRow { id, scores: judgement.scores })?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn write_table(judged: &[Judged], out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{}", table::scores(judged))?;
    writeln!(out, "{}", table::summary(&Summary::new(judged)))
}
