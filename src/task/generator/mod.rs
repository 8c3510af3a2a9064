//! Endless training data for the encoding task: row `i` is a pure function of seed, split, limits
//! and `i`.

mod draw;
mod kinds;
mod pools;
pub mod words;

use std::collections::HashMap;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::event::{Event, SOURCES, TYPES};
use super::gold;
use super::prompt::{self, Wording};
use super::schema::Encoding;
use super::wording::Length;
use crate::text::tokenizer::Message;
use draw::Draw;
pub(super) use draw::stream;
use kinds::{KINDS, Kind, SHORT};

/// The half of the facts that an example is made from. No name, path, identifier, version or
/// number of three digits or more is ever drawn for both splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// For training.
    Train,
    /// For evaluation.
    Eval,
}

impl Split {
    /// `train` or `eval`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Eval => "eval",
        }
    }
}

/// Limits on the difficulty of examples, for a curriculum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum characters of an event. Long wordings are used from [`Limits::LONG_PROMPTS_FROM`]
    /// on.
    pub max_event_chars: usize,
}

impl Limits {
    /// With shorter events a prompt of 600 words would dominate the example.
    pub const LONG_PROMPTS_FROM: usize = 800;
}

impl Default for Limits {
    /// Full difficulty.
    fn default() -> Self {
        Self { max_event_chars: 1800 }
    }
}

/// One example: an event, its right encoding, and the conversation that a model learns from.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Unique among examples of the same seed.
    pub id: String,
    /// Name of the kind of event.
    pub kind: &'static str,
    /// Id of the example of the same shape with opposite facts, if there is one.
    pub twin: Option<String>,
    /// The event to encode.
    pub event: Event,
    /// The right answer.
    pub encoding: Encoding,
    /// System, user and assistant message; the last is the encoding as compact JSON.
    pub messages: Vec<Message>,
}

/// Generates examples.
#[derive(Debug, Clone, Copy)]
pub struct Generator {
    seed: u64,
    split: Split,
    limits: Limits,
}

/// Of each dozen examples the last two are twins.
const DOZEN: u64 = 12;
/// Twins whose encodings are more similar than this (cosine of word counts) are redrawn; the limit
/// of the metric is 0.7.
const ALIKE: f64 = 0.65;
/// Shorter twins would be too similar, because of the words around the facts.
const TWIN_CHARS: usize = 160;

impl Generator {
    /// A generator of full difficulty.
    pub fn new(seed: u64, split: Split) -> Self {
        Self { seed, split, limits: Limits::default() }
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Example number `index`: always the same, in any order.
    pub fn row(&self, index: u64) -> Example {
        if index % DOZEN >= DOZEN - 2
            && let Some(row) = self.twin(index)
        {
            return row;
        }
        let (kind, event) = self.event(index, 0, None);
        let encoding = gold::encode(&event);
        self.finish(index, kind, None, event, encoding)
    }

    /// One of a pair of twins, if a few attempts give a pair that is different enough.
    fn twin(&self, index: u64) -> Option<Example> {
        let (first, side) = (index - index % DOZEN + DOZEN - 2, index % 2 == 1);
        (1..=6).find_map(|attempt| {
            let (kind, event) = self.event(first, attempt, Some(side));
            let (_, other) = self.event(first, attempt, Some(!side));
            let (encoding, opposite) = (gold::encode(&event), gold::encode(&other));
            (likeness(&encoding, &opposite) < ALIKE).then(|| {
                let twin = self.id(if side { first } else { first + 1 });
                self.finish(index, kind, Some(twin), event, encoding)
            })
        })
    }

    fn id(&self, index: u64) -> String {
        format!("{}-{}-{index:07}", self.split.name(), self.seed)
    }

    /// The event of an example, or of one side of a pair of twins.
    fn event(&self, number: u64, attempt: u64, side: Option<bool>) -> (&'static Kind, Event) {
        let shape = stream("shape", self.seed, self.split, number, attempt);
        let label = if side == Some(true) { "other fact" } else { "fact" };
        let fact = stream(label, self.seed, self.split, number, attempt);
        let mut draw = Draw::new(shape, fact, self.split, side == Some(true));
        let limit = self.limits.max_event_chars.max(12);
        let mut target = target(&mut draw, limit);
        if side.is_some() {
            target = target.max(TWIN_CHARS).min(limit);
        }
        let kind = kind(&mut draw, target, side.is_some());
        let plausible = draw.chance(0.6);
        let source = draw.pick(if plausible { kind.sources } else { &SOURCES });
        let sort = draw.pick(if plausible { kind.types } else { &TYPES });
        let text = (kind.write)(&mut draw, target);
        (kind, Event::new(source, sort, clip(&apart(&text), limit)))
    }

    fn finish(
        &self,
        index: u64,
        kind: &Kind,
        twin: Option<String>,
        event: Event,
        encoding: Encoding,
    ) -> Example {
        let mut rng = stream("wording", self.seed, self.split, index, 0);
        let wide = self.limits.max_event_chars >= Limits::LONG_PROMPTS_FROM;
        let wording = match rng.random_range(0..100) {
            0..=44 => Wording::standard(),
            45..=52 if wide => Wording::varied(&mut rng, Length::Long),
            53..=60 => Wording::varied(&mut rng, Length::Medium),
            _ => Wording::varied(&mut rng, Length::Short),
        };
        let mut messages = prompt::messages(&event, &wording);
        messages.push(Message { role: "assistant".to_owned(), content: encoding.to_compact_json() });
        Example { id: self.id(index), kind: kind.name, twin, event, encoding, messages }
    }
}

/// Target length of an event. As with real events, a quarter are titles and remarks, half are
/// paragraphs, and there is a long tail.
fn target(draw: &mut Draw, limit: usize) -> usize {
    let (low, high) = match draw.count(0, 99) {
        0..=4 => (12, 30),
        5..=29 => (30, SHORT),
        30..=74 => (SHORT, 450),
        75..=89 => (450, 800),
        90..=98 => (800, 1300),
        _ => (1300, 1750),
    };
    let wanted = draw.count(low, high);
    if wanted <= limit { wanted } else { draw.count(limit / 4, limit) }
}

/// A kind by the weights for this length.
fn kind(draw: &mut Draw, target: usize, twins: bool) -> &'static Kind {
    let share = |kind: &Kind| match (twins && !kind.twins, target < SHORT) {
        (true, _) => 0,
        (_, true) => kind.short,
        (_, false) => kind.long,
    };
    let mut left = draw.count(1, KINDS.iter().map(share).sum());
    KINDS
        .iter()
        .find(|kind| {
            let hit = left <= share(kind) && share(kind) > 0;
            left = left.saturating_sub(share(kind));
            hit
        })
        .expect("the shares add up to the range drawn from")
}

/// Separates two capitalised words that have only a line break or several blanks between them.
/// Read as one name, they couldn't be found in a text with condensed blanks.
fn apart(text: &str) -> String {
    let bytes = text.as_bytes();
    let letter = |at: usize| {
        at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_' || bytes[at] >= 0x80)
    };
    let mut separated = String::with_capacity(text.len() + 8);
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let end = at + bytes[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        let start = at - bytes[..at].iter().rev().take_while(|b| b.is_ascii_lowercase()).count();
        let before = start < at
            && start > 0
            && bytes[start - 1].is_ascii_uppercase()
            && (start < 2 || !letter(start - 2));
        let lower = end
            + 1
            + bytes
                .get(end + 1..)
                .map_or(0, |rest| rest.iter().take_while(|b| b.is_ascii_lowercase()).count());
        let after = end < bytes.len() && bytes[end].is_ascii_uppercase() && lower > end + 1 && !letter(lower);
        if before && after && &text[at..end] != " " {
            separated.push_str(&text[copied..at]);
            separated.push('.');
            copied = at;
        }
        at = end;
    }
    separated + &text[copied..]
}

/// At most `most` characters, cut after a whole word if possible.
fn clip(text: &str, most: usize) -> &str {
    let Some((end, _)) = text.char_indices().nth(most) else { return text };
    match text[..end].rfind(char::is_whitespace) {
        Some(space) if space > end / 2 => text[..space].trim_end(),
        _ => &text[..end],
    }
}

/// Cosine of the word counts of two encodings' values.
fn likeness(a: &Encoding, b: &Encoding) -> f64 {
    let (a, b) = (word_counts(a), word_counts(b));
    let norm = |counts: &HashMap<String, f64>| counts.values().map(|n| n * n).sum::<f64>().sqrt();
    let dot: f64 = a.iter().map(|(word, n)| n * b.get(word).unwrap_or(&0.0)).sum();
    dot / (norm(&a) * norm(&b))
}

/// Counts of the lower-case words in the values of an encoding.
fn word_counts(encoding: &Encoding) -> HashMap<String, f64> {
    let deep = &encoding.structured_concepts;
    let texts = [&encoding.gist, &encoding.summary, &encoding.content, &encoding.narrative]
        .into_iter()
        .chain(&encoding.concepts)
        .chain(deep.topics.iter().flat_map(|topic| [&topic.label, &topic.path]))
        .chain(deep.entities.iter().flat_map(|entity| [&entity.name, &entity.kind]))
        .chain(deep.actions.iter().flat_map(|action| [&action.verb, &action.object]))
        .chain(deep.causality.iter().flat_map(|cause| [&cause.relation, &cause.description]))
        .chain([&encoding.significance, &encoding.emotional_tone, &encoding.outcome]);
    let mut counts = HashMap::new();
    for text in texts {
        for word in text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()) {
            *counts.entry(word.to_lowercase()).or_insert(0.0) += 1.0;
        }
    }
    counts
}

#[cfg(test)]
mod tests;
