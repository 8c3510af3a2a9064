//! Hides people's texts from a template behind stand-ins, and puts them back as plain text.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::engine::{Prompt, Segment};

/// White space that no template writes itself: tells whether the template trims what it shows.
const PADDING: char = '\u{2003}';
/// What every stand-in begins with, and ends with.
const BEGIN: char = '\u{E000}';
const END: char = '\u{E001}';

/// The texts of one rendering.
#[derive(Debug)]
pub(super) struct Veil {
    mark: String,
    hidden: Mutex<Vec<Hidden>>,
}

#[derive(Debug)]
struct Hidden {
    text: String,
    /// Whether a rendering without it has lost it.
    must_show: bool,
}

impl Veil {
    /// A veil whose stand-ins occur in none of `texts`. Quotes and letters of both cases are in them, so that a template
    /// that escapes what it shows or changes its case destroys them.
    pub(super) fn new(texts: &[&str]) -> Self {
        let mark = (0..=u64::MAX)
            .map(|nonce| format!("{BEGIN}<Bespoke\"'{nonce}>"))
            .find(|mark| !texts.iter().any(|text| text.contains(mark.as_str())))
            .expect("finitely many marks can be in finitely many texts");
        Self { mark, hidden: Mutex::default() }
    }

    /// The stand-in for a text; an empty text stays empty, so that the template can see that.
    pub(super) fn hide(&self, text: &str, must_show: bool) -> String {
        if text.is_empty() {
            return String::new();
        }
        let mut hidden = self.hidden();
        hidden.push(Hidden { text: text.to_owned(), must_show });
        format!("{PADDING}{}{}{END}{PADDING}", self.mark, hidden.len() - 1)
    }

    /// The value with all its strings hidden.
    pub(super) fn hide_strings(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.hide(text, false)),
            Value::Array(items) => items.iter().map(|item| self.hide_strings(item)).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, field)| (name.clone(), self.hide_strings(field))).collect()
            }
            other => other.clone(),
        }
    }

    /// The value with the strings of this name hidden, at any depth.
    pub(super) fn hide_named(&self, name: &str, value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(|item| self.hide_named(name, item)).collect(),
            Value::Object(fields) => fields
                .iter()
                .map(|(key, field)| match field {
                    Value::String(text) if key == name => {
                        (key.clone(), Value::String(self.hide(text, false)))
                    }
                    other => (key.clone(), self.hide_named(name, other)),
                })
                .collect(),
            other => other.clone(),
        }
    }

    /// The value with the texts back in the places of their stand-ins.
    pub(super) fn reveal(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                let index = text
                    .strip_prefix(PADDING)
                    .and_then(|text| text.strip_prefix(&self.mark))
                    .and_then(|text| text.strip_suffix(PADDING))
                    .and_then(|text| text.strip_suffix(END))
                    .and_then(|index| index.parse::<usize>().ok());
                if let Some(hidden) = index.and_then(|index| self.hidden().get(index).map(|h| h.text.clone()))
                {
                    *text = hidden;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.reveal(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.reveal(field)),
            _ => {}
        }
    }

    /// The rendering with the texts put back as plain segments; `None` if a stand-in was changed, or is missing.
    pub(super) fn cut(&self, rendered: &str) -> Option<Prompt> {
        let hidden = self.hidden();
        let mut shown = vec![false; hidden.len()];
        let mut prompt = Prompt::new();
        let mut rest = rendered;
        while let Some((mut before, sentinel)) = rest.find(BEGIN).map(|at| rest.split_at(at)) {
            let (index, mut after) = sentinel.strip_prefix(self.mark.as_str())?.split_once(END)?;
            let index: usize = index.parse().ok()?;
            let mut text = hidden.get(index)?.text.as_str();
            shown[index] = true;
            match before.strip_suffix(PADDING) {
                Some(unpadded) => before = unpadded,
                None => text = text.trim_start(),
            }
            match after.strip_prefix(PADDING) {
                Some(unpadded) => after = unpadded,
                None => text = text.trim_end(),
            }
            push(&mut prompt, Segment::markup(before));
            push(&mut prompt, Segment::plain(text));
            rest = after;
        }
        push(&mut prompt, Segment::markup(rest));
        let lost = hidden.iter().zip(shown).any(|(hidden, shown)| hidden.must_show && !shown);
        (!lost).then_some(prompt)
    }

    fn hidden(&self) -> MutexGuard<'_, Vec<Hidden>> {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push(prompt: &mut Prompt, segment: Segment) {
    if !segment.text.is_empty() {
        prompt.push(segment);
    }
}
