//! Prints judgements to the terminal.

use comfy_table::Table;

use crate::cli::table::plain;
use crate::eval::metrics::is_minimal;
use crate::eval::report::{Judged, Summary};

/// One row per answer.
pub fn scores(judged: &[Judged]) -> Table {
    let mut table = plain(&["id", "EPR", "FR", "NP", "TED", "MIH", "SC", "parsed"]);
    for Judged { id, event, judgement, .. } in judged {
        let s = judgement.scores;
        let mih = if is_minimal(&event.content) { s.mih.to_string() } else { "-".to_owned() };
        table.add_row([
            id_text(id),
            three(s.epr),
            three(s.fr),
            three(s.np),
            s.ted.to_string(),
            mih,
            s.sc.to_string(),
            if s.parsed { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table
}

/// The means, with their targets.
pub fn summary(summary: &Summary) -> Table {
    let mut table = plain(&["metric", "mean", "target"]);
    for (name, value, target) in summary.metrics() {
        table.add_row([name.to_owned(), value.map_or_else(|| "-".to_owned(), three), target.to_owned()]);
    }
    for (name, value) in summary.facts() {
        table.add_row([name.to_owned(), value, String::new()]);
    }
    table
}

/// An id without the quotes of JSON.
pub fn id_text(id: &serde_json::Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

/// A share with three decimals.
pub fn three(value: f64) -> String {
    format!("{value:.3}")
}
