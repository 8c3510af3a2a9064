//! The configuration as written: parses TOML into keys with their spans, and validates no values.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::error::Mistake;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConfig {
    pub(super) server: Server,
    pub(super) model: Model,
    pub(super) log: Log,
    pub(super) sampling: Sampling,
    pub(super) spokes: Spokes,
    pub(super) paths: Paths,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    pub(super) listen: Option<Spanned<String>>,
    pub(super) body_limit: Option<Spanned<String>>,
    pub(super) request_deadline: Option<Spanned<String>>,
    pub(super) drain: Option<Spanned<String>>,
    pub(super) connections: Option<Spanned<i64>>,
    pub(super) head_limit: Option<Spanned<String>>,
    pub(super) slow_sender: Option<Spanned<String>>,
    pub(super) slow_reader: Option<Spanned<String>>,
    pub(super) keep_alive: Option<Spanned<String>>,
    pub(super) watchdog: Option<Spanned<String>>,
    pub(super) keys_file: Option<Spanned<String>>,
    pub(super) hosts: Option<Vec<Spanned<String>>>,
    pub(super) cors_origins: Option<Vec<Spanned<String>>>,
    pub(super) slots: Option<bool>,
    pub(super) metrics: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: Option<Spanned<String>>,
    pub(super) access: Option<Spanned<String>>,
    pub(super) prompts: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Model {
    pub(super) path: Option<Spanned<String>>,
    pub(super) id: Option<Spanned<String>>,
    pub(super) aliases: Option<Vec<Spanned<String>>>,
    pub(super) tags: Option<Vec<Spanned<String>>>,
    pub(super) chat_template: Option<Spanned<String>>,
    pub(super) context: Option<Spanned<i64>>,
    pub(super) cache_memory: Option<Spanned<String>>,
    pub(super) lanes: Option<Spanned<i64>>,
    pub(super) threads: Option<Spanned<i64>>,
    pub(super) cached_sequences: Option<Spanned<i64>>,
    pub(super) draft: Option<bool>,
    pub(super) queue: Option<Spanned<i64>>,
    pub(super) queue_tokens: Option<Spanned<i64>>,
    pub(super) kernels: Option<Spanned<String>>,
    pub(super) self_test: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Sampling {
    pub(super) temperature: Option<Spanned<f64>>,
    pub(super) top_p: Option<Spanned<f64>>,
    pub(super) top_k: Option<Spanned<i64>>,
    pub(super) min_p: Option<Spanned<f64>>,
    pub(super) seed: Option<Spanned<i64>>,
    pub(super) thinking: Option<bool>,
    pub(super) task_limits: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Paths {
    pub(super) spokes: Option<Spanned<String>>,
    pub(super) state: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Spokes {
    pub(super) watch: Option<Spanned<String>>,
    pub(super) reconcile: Option<Spanned<String>>,
    pub(super) poll: Option<Spanned<String>>,
    pub(super) settle: Option<Spanned<String>>,
    pub(super) most: Option<Spanned<i64>>,
    pub(super) keep: Option<Spanned<i64>>,
    pub(super) memory: Option<Spanned<String>>,
    pub(super) file_limit: Option<Spanned<String>>,
    pub(super) rank_limit: Option<Spanned<i64>>,
    pub(super) probe: Option<bool>,
    pub(super) probe_limit: Option<Spanned<String>>,
    pub(super) probe_memory: Option<Spanned<String>>,
    pub(super) quarantine: Option<Spanned<String>>,
    pub(super) move_refused: Option<bool>,
    pub(super) default: Option<Spanned<String>>,
    pub(super) unknown_model: Option<Spanned<String>>,
    pub(super) retired: Option<Spanned<String>>,
    pub(super) tasks: BTreeMap<String, Spanned<String>>,
    pub(super) gate: BTreeMap<String, Gate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Gate {
    pub(super) probes: Option<Spanned<String>>,
    pub(super) epr: Option<Spanned<f64>>,
    pub(super) np: Option<Spanned<f64>>,
    pub(super) sc: Option<Spanned<f64>>,
    pub(super) fr: Option<Spanned<f64>>,
    pub(super) limit: Option<Spanned<String>>,
}

/// Reads what can be read and lists the mistakes.
///
/// serde stops at the first key that it rejects. So the key is recorded and removed, and the rest
/// is read again.
pub(super) fn read(text: &str) -> (RawConfig, Vec<Mistake>) {
    let (mut document, errors) = DeTable::parse_recoverable(text);
    let mut mistakes: Vec<Mistake> =
        errors.iter().map(|error| Mistake::new(error.span(), one_line(error.message()), None)).collect();
    loop {
        match RawConfig::deserialize(Deserializer::from(document.clone())) {
            Ok(written) => return (written, mistakes),
            Err(error) => {
                let span = error.span();
                let key = span.as_ref().and_then(|span| remove(document.get_mut(), span));
                let place = key.as_deref().map_or_else(String::new, |key| format!("{key}: "));
                mistakes.push(Mistake::new(span, place + &one_line(error.message()), None));
                if key.is_none() {
                    // There is no key to remove. Another round would find the same mistake for
                    // ever.
                    return (RawConfig::default(), mistakes);
                }
            }
        }
    }
}

/// Removes the innermost entry around `span` from the table and returns its dotted key.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let around = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let inside = |key: Range<usize>, value: &Spanned<DeValue<'_>>| {
        around(key)
            || around(value.span())
            || value.get_ref().as_table().is_some_and(|table| holds(table, span))
    };
    let key = table.iter().find(|(key, value)| inside(key.span(), value)).map(|(key, _)| key.clone())?;
    let name = key.get_ref().to_string();
    if let Some(DeValue::Table(inner)) = table.get_mut(&key).map(Spanned::get_mut)
        && let Some(rest) = remove(inner, span)
    {
        return Some(format!("{name}.{rest}"));
    }
    table.remove(&key);
    Some(name)
}

/// Whether an entry of the table, at any depth, is around `span`. A table's own span covers only
/// its header.
fn holds(table: &DeTable<'_>, span: &Range<usize>) -> bool {
    let around = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    table.iter().any(|(key, value)| {
        around(key.span())
            || around(value.span())
            || value.get_ref().as_table().is_some_and(|inner| holds(inner, span))
    })
}

/// Replaces Rust's names of number types in serde's messages.
fn one_line(message: &str) -> String {
    let words = message.trim().replace('\n', ", ");
    words.replace("expected i64", "expected a whole number").replace("expected f64", "expected a number")
}
