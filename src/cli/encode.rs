//! `bespoke encode`: turns an event into a memory, through the running daemon.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table};
use serde_json::Value;

use super::client::{Daemon, choose_spoke, encoding_request};
use super::table;
use crate::task::{Encoding, Event, SOURCES};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The event: text, or one JSON object {raw_input or content, source, type}; `-` is standard
    /// input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    daemon: Daemon,
    /// Source of the event: mcp, terminal, filesystem, git, clipboard, ingest [default: mcp]
    #[arg(long)]
    source: Option<String>,
    /// Type of the event: decision, error, insight, ... [default: general]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Spoke that answers; `post` is the post alone [default: as the daemon's configuration says]
    #[arg(long, value_name = "NAME")]
    spoke: Option<String>,
    /// Print JSON on a terminal too
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// An event that can't be read or is empty; no daemon; errors of the daemon.
pub fn run(args: Args) -> anyhow::Result<()> {
    let text = read(&args.file)?;
    let event = event(&text, args.source, args.kind)?;
    if !SOURCES.contains(&event.source.as_str()) {
        let known = SOURCES.join(", ");
        eprintln!("warning: the post has not learnt events from {:?}, only from {known}", event.source);
    }
    let mut request = encoding_request(&event);
    choose_spoke(&mut request, args.spoke.as_deref());
    let reply = args.daemon.client()?.post("/v1/chat/completions", &request)?;
    let encoding = memory(&reply)?;
    if args.json || !std::io::stdout().is_terminal() {
        println!("{}", encoding.to_compact_json());
    } else {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        println!("{}", readable(&encoding, colour));
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<String> {
    if file != Path::new("-") {
        return fs_err::read_to_string(file).context("can't read the event");
    }
    if std::io::stdin().is_terminal() {
        eprintln!("reading the event from the terminal: end it with Ctrl-D");
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("can't read the event from standard input")?;
    Ok(text)
}

/// Parses an event. A JSON object without `raw_input` and `content` is itself the text of an
/// event.
fn event(text: &str, source: Option<String>, kind: Option<String>) -> anyhow::Result<Event> {
    let object = match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(object)) if object.contains_key("raw_input") || object.contains_key("content") => {
            object
        }
        _ => serde_json::Map::from_iter([("content".to_owned(), text.into())]),
    };
    let field = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => bail!("event: {name}: found {other}, expected a string"),
    };
    let content = match field("raw_input")? {
        Some(content) => content,
        None => field("content")?.unwrap_or_default(),
    };
    if content.trim().is_empty() {
        bail!("the event is empty: expected text, or a JSON object with raw_input or content");
    }
    let source = source.or(field("source")?).unwrap_or_else(|| "mcp".to_owned());
    let kind = kind.or(field("type")?).unwrap_or_else(|| "general".to_owned());
    Ok(Event::new(source, kind, content.trim_end()))
}

/// The memory in a reply.
fn memory(reply: &Value) -> anyhow::Result<Encoding> {
    let choice = &reply["choices"][0];
    let content = choice["message"]["content"].as_str().context("the daemon's reply has no content")?;
    if choice["finish_reason"] == "length" {
        eprintln!("warning: the model ran out of tokens; the memory was closed early");
    }
    serde_json::from_str(content).with_context(|| format!("the answer is not a memory: {content}"))
}

/// The memory as a table: labels on the left, wrapped text on the right.
fn readable(memory: &Encoding, colour: bool) -> Table {
    let Encoding { structured_concepts: concepts, .. } = memory;
    let list = |lines: Vec<String>| lines.join("\n");
    let rows = [
        ("gist", memory.gist.clone()),
        ("summary", memory.summary.clone()),
        ("content", memory.content.clone()),
        ("narrative", memory.narrative.clone()),
        ("concepts", memory.concepts.join(", ")),
        (
            "topics",
            list(concepts.topics.iter().map(|topic| format!("{} ({})", topic.label, topic.path)).collect()),
        ),
        (
            "entities",
            list(concepts.entities.iter().map(|e| joined(&[&e.name, &e.kind, &e.context])).collect()),
        ),
        (
            "actions",
            list(concepts.actions.iter().map(|a| joined(&[&a.verb, &a.object, &a.details])).collect()),
        ),
        (
            "causality",
            list(concepts.causality.iter().map(|c| joined(&[&c.relation, &c.description])).collect()),
        ),
        ("significance", memory.significance.clone()),
        ("tone", memory.emotional_tone.clone()),
        ("outcome", memory.outcome.clone()),
        ("salience", memory.salience.to_string()),
    ];
    let mut table = table::fitting();
    table.load_preset(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    for (label, text) in rows.into_iter().filter(|(_, text)| !text.is_empty()) {
        let label = Cell::new(label);
        let label = if colour { label.fg(Color::Cyan).add_attribute(Attribute::Bold) } else { label };
        table.add_row([label, Cell::new(harmless(&text))]);
    }
    table
}

/// The non-empty parts, with a gap between them.
fn joined(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" · ")
}

/// Removes control characters, so that an event can't control the terminal.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::gold;

    fn read_event(text: &str) -> Event {
        event(text, None, None).unwrap()
    }

    #[test]
    fn text_and_objects_are_events() {
        assert_eq!(read_event("Fix it\n"), Event::new("mcp", "general", "Fix it"));
        let object = r#"{"id": "7", "raw_input": "Fix it", "source": "git", "type": "commit"}"#;
        assert_eq!(read_event(object), Event::new("git", "commit", "Fix it"));
        let given = event(object, Some("mcp".into()), Some("error".into())).unwrap();
        assert_eq!((given.source.as_str(), given.kind.as_str()), ("mcp", "error"));
        let snippet = r#"{"port": 8080}"#;
        assert_eq!(read_event(snippet).content, snippet, "a snippet of JSON is an event like any other text");
    }

    #[test]
    fn an_event_without_text_is_refused() {
        for empty in ["", " \n", r#"{"raw_input": ""}"#, r#"{"content": null}"#] {
            assert!(event(empty, None, None).unwrap_err().to_string().contains("empty"), "{empty:?}");
        }
        let wrong = event(r#"{"raw_input": 5}"#, None, None).unwrap_err().to_string();
        assert!(wrong.contains("raw_input: found 5"), "{wrong}");
    }

    #[test]
    fn a_memory_is_wrapped_labelled_and_harmless() {
        let mut memory = gold::encode(&Event::new(
            "git",
            "commit",
            "Fix the parser of src/io/read.rs, because 1.2.3 broke it",
        ));
        memory.content.push('\u{1b}');
        let mut table = readable(&memory, false);
        table.set_width(60);
        let text = table.to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert!(text.contains("gist") && text.contains("salience") && !text.contains('\u{1b}'), "{text}");
    }
}
