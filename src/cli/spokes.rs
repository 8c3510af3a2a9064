//! `bespoke spokes`: lists the spokes of the daemon and what they serve.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use serde_json::Value;

use super::client::Daemon;
use super::table;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// No daemon answers, or it refuses.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let answer = args.daemon.client()?.get("/v1/spokes")?;
    if args.json {
        println!("{answer}");
        return Ok(());
    }
    let rows = answer["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(message) = answer["state_error"]["message"].as_str() {
        eprintln!("warning: {message}");
    }
    if rows.is_empty() {
        println!("no spokes: drop a LoRA or Felix file into the daemon's folder");
        return Ok(());
    }
    println!("{}", shown(rows, SystemTime::now()));
    for row in rows.iter().filter(|row| row["reason"].is_object()) {
        let text = |key: &str| row["reason"][key].as_str().unwrap_or_default();
        let name = row["name"].as_str().unwrap_or_default();
        println!("{name}: {} ({})", text("message"), text("code"));
        if let Some(at) = row["retry_at"].as_u64() {
            println!("  it will be retried {}", ahead(at, SystemTime::now()));
        }
        if row["reason"]["hint"].is_string() {
            println!("  hint: {}", text("hint"));
        }
    }
    Ok(())
}

fn shown(rows: &[Value], now: SystemTime) -> String {
    let header = ["NAME", "GENERATION", "STATE", "KIND", "RANK", "SIZE", "MEMORY", "USES", "LAST USED"];
    let mut table = table::plain(&header);
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let number = |key: &str| row[key].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
        let size = |key: &str| {
            row[key].as_u64().map_or_else(|| "-".to_owned(), |n| ByteSize(n).display().iec().to_string())
        };
        table.add_row([
            text("name"),
            text("generation").chars().take(12).collect(),
            text("state"),
            text("kind"),
            number("rank"),
            size("bytes"),
            size("resident_bytes"),
            number("uses"),
            row["last_used"].as_u64().map_or_else(|| "never".to_owned(), |at| ago(at, now)),
        ]);
    }
    table.to_string()
}

/// Roughly how long ago a Unix time was.
fn ago(at: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = now.saturating_sub(at);
    let rough = match seconds {
        0..60 => seconds,
        60..3_600 => seconds / 60 * 60,
        3_600..86_400 => seconds / 3_600 * 3_600,
        _ => seconds / 86_400 * 86_400,
    };
    format!("{} ago", humantime::format_duration(Duration::from_secs(rough)))
}

/// How far ahead a Unix time is.
fn ahead(at: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match at.saturating_sub(now) {
        0 => "now".to_owned(),
        seconds => format!("in {}", humantime::format_duration(Duration::from_secs(seconds))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_become_a_table() {
        let rows = [
            json!({
                "name": "encoding", "generation": "0123456789abcdef", "state": "serving", "kind": "lora", "rank": 8,
                "bytes": 2048, "resident_bytes": 4096, "uses": 3, "last_used": 900
            }),
            json!({
                "name": "bad", "generation": null, "state": "quarantined", "kind": null, "rank": null, "bytes": null,
                "uses": 0, "last_used": null
            }),
        ];
        insta::assert_snapshot!(shown(&rows, UNIX_EPOCH + Duration::from_secs(1_000)));
    }
}
