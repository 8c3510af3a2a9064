//! How a run looks on a terminal.

use comfy_table::Table;

use crate::cli::table::plain;
use crate::eval::speed::Report;
use crate::eval::speed::report::{Endpoint, Measured, Ratio};
use crate::eval::speed::shared_prefix::SharedPrefixReport;
use crate::eval::speed::statistics::{Percentiles, Spread};

/// Prints a report to stdout.
pub fn print(report: &Report) {
    println!("{}", levels(report));
    println!("times are p50/p90/p99; seed {}", report.seed);
    for level in &report.levels {
        if let Some(ratio) = &level.ratio {
            println!("concurrency {}: {}", level.concurrency, ratio_line(ratio));
        }
        for (endpoint, measured) in report.endpoints.iter().zip(&level.measured) {
            if let Some(error) = &measured.first_error {
                println!("concurrency {}: first error of {}: {error}", level.concurrency, endpoint.url);
            }
        }
    }
    if let Some(shared_prefix) = &report.shared_prefix {
        println!("{}", shared_prefixes(report, shared_prefix));
        if let Some(spread) = shared_prefix.second_ttft {
            println!("first piece with a known head: {}", times(spread));
        }
    }
}

/// An endpoint in short; two of one address are told apart by what they were asked for.
fn name(report: &Report, endpoint: &Endpoint) -> String {
    let short = endpoint.url.trim_start_matches("http://");
    let twin = report.endpoints.iter().filter(|other| other.url == endpoint.url).count() > 1;
    if twin { format!("{short} {}", endpoint.model) } else { short.to_owned() }
}

fn levels(report: &Report) -> Table {
    let mut table = plain(&[
        "endpoint",
        "at once",
        "requests/s",
        "tokens/s",
        "first piece ms",
        "between pieces ms",
        "answer ms",
        "cached",
        "errors",
        "invalid",
        "cut",
    ]);
    for level in &report.levels {
        for (endpoint, measured) in report.endpoints.iter().zip(&level.measured) {
            let Measured { requests, errors, invalid, ended_by_length, .. } = measured;
            let of_all =
                |count: &usize| if *count == 0 { "0".to_owned() } else { format!("{count}/{requests}") };
            table.add_row([
                name(report, endpoint),
                level.concurrency.to_string(),
                format!("{:.2}", measured.requests_per_second),
                format!("{:.0}", measured.tokens_per_second),
                percentiles(measured.ttft_ms),
                percentiles(measured.itl_ms),
                percentiles(measured.latency_ms),
                share(measured.cached_share()),
                of_all(errors),
                of_all(invalid),
                of_all(ended_by_length),
            ]);
        }
    }
    table
}

fn shared_prefixes(report: &Report, shared: &SharedPrefixReport) -> Table {
    let mut table = plain(&["endpoint", "new head ms", "known head ms", "known over new", "cached"]);
    for (endpoint, figures) in report.endpoints.iter().zip(&shared.endpoints) {
        table.add_row([
            name(report, endpoint),
            percentiles(figures.first_ttft_ms),
            percentiles(figures.second_ttft_ms),
            figures.second_over_first.map_or_else(nothing, times),
            share(figures.cached_share),
        ]);
    }
    table
}

fn ratio_line(ratio: &Ratio) -> String {
    let named = [
        ("requests/s", ratio.requests_per_second),
        ("tokens/s", ratio.tokens_per_second),
        ("first piece p50", ratio.ttft_p50),
    ];
    let parts: Vec<String> = named
        .into_iter()
        .map(|(name, spread)| format!("{name} {}", spread.map_or_else(nothing, times)))
        .collect();
    parts.join(", ")
}

fn times(Spread { median, min, max }: Spread) -> String {
    format!("{median:.2}x ({min:.2} to {max:.2})")
}

fn percentiles(percentiles: Option<Percentiles>) -> String {
    percentiles.map_or_else(nothing, |Percentiles { p50, p90, p99 }| {
        format!("{}/{}/{}", short(p50), short(p90), short(p99))
    })
}

/// One digit behind the point where it says something.
fn short(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}

fn share(share: Option<f64>) -> String {
    share.map_or_else(nothing, |share| format!("{:.0} %", share * 100.0))
}

fn nothing() -> String {
    "-".to_owned()
}
