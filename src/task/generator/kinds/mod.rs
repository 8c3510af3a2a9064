//! The kinds of events, and how often each is drawn.

mod commits;
mod documents;
mod failures;
mod foreign;
mod notes;
mod random_text;
mod snippets;
mod tables;

use super::draw::Draw;

/// A kind of event.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its name in rows and reports.
    pub name: &'static str,
    /// Share among short events (below [`SHORT`] characters), in parts.
    pub short: usize,
    /// Share among the others.
    pub long: usize,
    /// Sources that such an event plausibly comes from.
    pub sources: &'static [&'static str],
    /// Types that it plausibly has.
    pub types: &'static [&'static str],
    /// Whether opposite twins of it make sense.
    pub twins: bool,
    /// Writes one: of about this many characters, at times more, never much less.
    pub write: fn(&mut Draw, usize) -> String,
}

/// Events below this many characters are mostly titles, remarks and single lines.
pub const SHORT: usize = 90;

const ANY: &[&str] = &["mcp", "terminal", "filesystem", "clipboard"];

/// All kinds.
#[rustfmt::skip]
pub const KINDS: &[Kind] = &[
    Kind { name: "salad", short: 26, long: 24, sources: ANY, types: &["general", "note", "insight"], twins: false, write: random_text::prose },
    Kind { name: "strings", short: 10, long: 9, sources: ANY, types: &["general", "note"], twins: false, write: random_text::strings },
    Kind { name: "commit", short: 22, long: 12, sources: &["git", "terminal", "mcp"], types: &["commit", "change", "decision"], twins: true, write: commits::commit },
    Kind { name: "diffstat", short: 0, long: 7, sources: &["git", "mcp"], types: &["commit", "change"], twins: true, write: commits::diffstat },
    Kind { name: "pull_request", short: 0, long: 8, sources: &["git", "filesystem", "mcp"], types: &["insight", "change", "general"], twins: true, write: commits::pull_request },
    Kind { name: "build_failure", short: 2, long: 3, sources: &["terminal"], types: &["error", "log"], twins: true, write: failures::build },
    Kind { name: "stack_trace", short: 0, long: 3, sources: &["terminal", "clipboard"], types: &["error"], twins: true, write: failures::trace },
    Kind { name: "log_burst", short: 2, long: 3, sources: &["filesystem", "terminal"], types: &["log", "error"], twins: true, write: failures::log },
    Kind { name: "incident", short: 2, long: 3, sources: &["mcp"], types: &["error", "insight"], twins: true, write: failures::incident },
    Kind { name: "decision", short: 3, long: 4, sources: &["mcp"], types: &["decision"], twins: true, write: notes::decision },
    Kind { name: "meeting", short: 2, long: 3, sources: &["mcp", "ingest"], types: &["meeting", "note"], twins: true, write: notes::meeting },
    Kind { name: "chat", short: 6, long: 3, sources: &["clipboard", "mcp"], types: &["note", "question", "general"], twins: true, write: notes::chat },
    Kind { name: "correction", short: 3, long: 2, sources: &["mcp"], types: &["insight", "note"], twins: true, write: notes::correction },
    Kind { name: "insight", short: 3, long: 4, sources: &["mcp"], types: &["insight"], twins: true, write: notes::insight },
    Kind { name: "minimal", short: 9, long: 0, sources: ANY, types: &["general", "note"], twins: false, write: notes::minimal },
    Kind { name: "benchmark", short: 2, long: 3, sources: &["terminal", "mcp"], types: &["benchmark", "insight"], twins: true, write: tables::benchmark },
    Kind { name: "config_change", short: 3, long: 3, sources: &["filesystem"], types: &["config", "change"], twins: true, write: tables::config },
    Kind { name: "command", short: 3, long: 3, sources: &["terminal"], types: &["general", "log"], twins: true, write: tables::command },
    Kind { name: "snippet", short: 2, long: 5, sources: &["clipboard", "filesystem"], types: &["general", "config"], twins: true, write: snippets::snippet },
    Kind { name: "file_ingest", short: 1, long: 3, sources: &["ingest", "filesystem"], types: &["general", "note"], twins: true, write: documents::ingest },
    Kind { name: "non_english", short: 3, long: 4, sources: ANY, types: &["note", "general"], twins: false, write: foreign::note },
    Kind { name: "recipe", short: 1, long: 2, sources: &["clipboard", "ingest"], types: &["general", "note"], twins: true, write: documents::recipe },
    Kind { name: "contract", short: 1, long: 2, sources: &["ingest", "clipboard"], types: &["general"], twins: true, write: documents::contract },
];

/// Adds filled templates of `list`, joined by `separator`, until `text` has `target` characters.
fn extend(draw: &mut Draw, text: &mut String, list: &[&str], separator: &str, target: usize) {
    while text.is_empty() || text.len() < target {
        if !text.is_empty() {
            text.push_str(separator);
        }
        let template = draw.pick(list);
        text.push_str(&draw.fill(template));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::generator::{Split, draw};

    #[test]
    fn every_template_of_every_kind_can_be_filled() {
        for kind in KINDS {
            for number in 0..300 {
                let stream = |label| draw::stream(label, 7, Split::Train, number, 0);
                let mut draw = Draw::new(stream("shape"), stream("fact"), Split::Train, number % 2 == 0);
                let text = (kind.write)(&mut draw, 20 + number as usize * 2);
                assert!(!text.trim().is_empty(), "{}", kind.name);
            }
        }
        assert!(KINDS.len() >= 14);
    }
}
