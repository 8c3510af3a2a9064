//! `bespoke bench serve`: rounds of requests to an endpoint, or to two in turn.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use rand::Rng;

use super::drive::{Target, fixed_length};
use super::table;
use crate::atomic_file;
use crate::cli::client::{Client, Daemon};
use crate::eval::rows;
use crate::eval::speed::shared_prefix::SharedPrefixReport;
use crate::eval::speed::{Level, Report, Requests, Round, Workload, plot};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// What requests name as their model, such as a spoke [default: the first that the endpoint lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// A second endpoint; rounds take turns, and each pair of rounds gives a ratio
    #[arg(long, value_name = "URL")]
    against: Option<String>,
    /// What requests to the second endpoint name; without --against, a second model of the first endpoint
    #[arg(long, value_name = "NAME")]
    against_model: Option<String>,
    /// What is asked
    #[arg(long, value_enum, default_value_t = Workload::Encoding)]
    workload: Workload,
    /// Events to encode, rows {raw_input, source, type}, instead of generated ones; each is used once
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Requests under way at once, one measurement for each number
    #[arg(long, value_name = "N,N..", value_delimiter = ',', default_value = "1,4,16",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: Vec<u16>,
    /// Requests of a round
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Rounds to each endpoint at each concurrency
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Requests to each endpoint before the first round at each concurrency, not counted
    #[arg(long, value_name = "N", default_value_t = 4)]
    warmup: u32,
    /// Tokens of an encoding at most
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Tokens of a chat answer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    chat_tokens: u32,
    /// What the requests are drawn from [default: drawn, and reported: a server may remember the prompts of an earlier run]
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Also measure what a known head saves: pairs of requests that begin alike, `--requests` of them
    #[arg(long)]
    head_test: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Draw the figures as bars
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// An endpoint that does not answer or fails every request, too few events, a drawing that can't be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut requests = args.requests()?;
    let mut targets = vec![Target::find(args.daemon.client()?, args.model.as_deref())?];
    let against = match (&args.against, &args.against_model) {
        (Some(url), _) => Some(Client::with_key_of_environment(url)?),
        (None, Some(_)) => Some(args.daemon.client()?),
        (None, None) => None,
    };
    if let Some(client) = against {
        targets.push(Target::find(client, args.against_model.as_deref())?);
    }
    requests.fixed_length = fixed_length(&targets, args.workload)?;
    let mut run = Run { args, requests: &requests, targets: &targets, next: 0 };
    let levels: Vec<Level> =
        args.concurrency.iter().map(|&concurrency| run.level(concurrency)).collect::<anyhow::Result<_>>()?;
    let shared_prefix = if args.head_test { Some(run.shared_prefix()?) } else { None };
    let report = Report {
        workload: args.workload,
        requests: args.requests,
        seed: requests.seed,
        max_tokens: args.max_tokens,
        chat_tokens: args.chat_tokens,
        fixed_length: requests.fixed_length,
        endpoints: targets.iter().map(Target::endpoint).collect(),
        levels,
        shared_prefix,
    };
    if let Some(path) = &args.svg {
        atomic_file::write(path, plot::svg(&report).as_bytes())
            .with_context(|| path.display().to_string())?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        table::print(&report);
    }
    Ok(())
}

impl Args {
    fn requests(&self) -> anyhow::Result<Requests> {
        let events = self.events.as_deref().map(rows::read_probes).transpose()?;
        let requests = Requests {
            workload: self.workload,
            seed: u64::from(self.seed.unwrap_or_else(|| rand::rng().random())),
            events: events.map(|rows| rows.into_iter().map(|row| row.event).collect()),
            max_tokens: self.max_tokens,
            chat_tokens: self.chat_tokens,
            fixed_length: true,
        };
        if let (Some(events), Some(file)) = (&requests.events, &self.events) {
            let level = u64::from(self.warmup) + u64::from(self.rounds) * u64::from(self.requests);
            let (found, needed) =
                (events.len() as u64, requests.events_of(level * self.concurrency.len() as u64));
            // An event that comes again would be answered from a cache of prompts.
            ensure!(
                found >= needed,
                "{} has {found} events, this run takes {needed}\nhint: ask for less with --requests, --rounds, \
                 --warmup or --concurrency",
                file.display()
            );
        }
        Ok(requests)
    }
}

/// A run under way.
struct Run<'a> {
    args: &'a Args,
    requests: &'a Requests,
    targets: &'a [Target],
    /// Number of the next request that nobody has been asked.
    next: u64,
}

impl Run<'_> {
    /// Numbers of requests that nobody has been asked.
    fn fresh(&mut self, count: u32) -> std::ops::Range<u64> {
        let first = self.next;
        self.next += u64::from(count);
        first..self.next
    }

    /// All rounds at one concurrency. A pair of rounds asks both endpoints the same; who begins changes from pair to pair,
    /// so that a machine that gets slower or faster treats both alike.
    fn level(&mut self, concurrency: u16) -> anyhow::Result<Level> {
        let Args { rounds, requests, warmup, .. } = *self.args;
        let numbers = self.fresh(warmup);
        for target in self.targets {
            target.round(self.requests, numbers.clone(), concurrency, || {});
        }
        let style = "concurrency {msg} {bar:30} {pos}/{len} requests, {eta} left";
        let bar = ProgressBar::new(u64::from(rounds) * u64::from(requests) * self.targets.len() as u64)
            .with_style(ProgressStyle::with_template(style).expect("a constant"))
            .with_message(concurrency.to_string());
        let mut measured: Vec<Vec<Round>> = self.targets.iter().map(|_| Vec::new()).collect();
        for pair in 0..rounds {
            let numbers = self.fresh(requests);
            for which in in_turn(self.targets.len(), pair) {
                let target = &self.targets[which];
                let round = target.round(self.requests, numbers.clone(), concurrency, || bar.inc(1));
                if !std::io::stderr().is_terminal() {
                    tell(&target.endpoint().url, concurrency, pair, &round);
                }
                measured[which].push(round);
            }
        }
        bar.finish_and_clear();
        for (target, rounds) in self.targets.iter().zip(&measured) {
            let answered = rounds.iter().any(|round| !round.answers.is_empty());
            let error = rounds.iter().flat_map(|round| &round.errors).next();
            ensure!(
                answered,
                "{} answered none of its requests at concurrency {concurrency}: {}",
                target.endpoint().url,
                error.map_or("no reason given", String::as_str)
            );
        }
        Ok(Level::new(concurrency, &measured))
    }

    fn shared_prefix(&mut self) -> anyhow::Result<SharedPrefixReport> {
        let mut trials: Vec<Vec<_>> = self.targets.iter().map(|_| Vec::new()).collect();
        for number in 0..self.args.requests {
            for which in in_turn(self.targets.len(), number) {
                trials[which].push(self.targets[which].trial(self.requests, u64::from(number))?);
            }
        }
        Ok(SharedPrefixReport::new(&trials))
    }
}

/// The targets of a pair in the order in which they are asked: swapped in every other pair.
fn in_turn(targets: usize, pair: u32) -> Vec<usize> {
    let order = 0..targets;
    if pair.is_multiple_of(2) { order.collect() } else { order.rev().collect() }
}

fn tell(url: &str, concurrency: u16, pair: u32, round: &Round) {
    eprintln!(
        "concurrency {concurrency}, round {}, {url}: {:.2} requests/s, {:.0} tokens/s, {} errors",
        pair + 1,
        round.requests_per_second(),
        round.tokens_per_second(),
        round.errors.len()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_begins_changes_from_pair_to_pair() {
        assert_eq!([0, 1, 2].map(|pair| in_turn(2, pair)), [vec![0, 1], vec![1, 0], vec![0, 1]]);
        assert_eq!(in_turn(1, 1), [0]);
    }
}
