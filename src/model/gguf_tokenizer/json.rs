//! Reads a `tokenizer.json` part by part and refuses, by key, what llama.cpp would do differently.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, filler};
use crate::model::file_error::FileError;
use crate::model::hugging_face_config::TokenIds;
use crate::text::control_texts;
use crate::text::tokenizer::looks_special;

/// A `tokenizer.json`, and its path for errors.
#[derive(Clone, Copy)]
pub(super) struct Json<'a> {
    pub(super) path: &'a Path,
    pub(super) root: &'a Value,
}

/// Text and llama.cpp's type of every token id.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Vocabulary {
    pub(super) texts: Vec<String>,
    pub(super) types: Vec<i32>,
}

/// What the post-processor puts around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    /// The beginning of a sequence before it.
    pub(super) bos: bool,
    /// The end of a sequence after it.
    pub(super) eos: bool,
    /// Whether a pair of texts has anything between them; the converter then says that it is no
    /// separator.
    pub(super) parted_pair: bool,
}

impl<'a> Json<'a> {
    pub(super) fn wrong(&self, key: &str, found: &Value, expected: impl Into<String>) -> FileError {
        let mut found = found.to_string();
        if found.len() > 200 {
            let cut = (0..=200).rev().find(|&at| found.is_char_boundary(at)).unwrap_or(0);
            found.replace_range(cut.., " ...");
        }
        FileError::key(self.path, key, found, expected)
    }

    /// Refuses options of the model that llama.cpp doesn't have.
    pub(super) fn no_surprises(&self) -> Result<(), FileError> {
        let model = &self.root["model"];
        // Old files don't name the type, but only BPE has merges.
        if !model["type"].is_null() && model["type"] != "BPE" {
            return Err(self.wrong("model.type", &model["type"], "\"BPE\""));
        }
        for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
            if !model[key].is_null() && model[key] != "" {
                return Err(self.wrong(&format!("model.{key}"), &model[key], "null"));
            }
        }
        Ok(())
    }

    /// The `added_tokens`.
    pub(super) fn added_tokens(&self) -> impl Iterator<Item = &'a Value> {
        self.root["added_tokens"].as_array().into_iter().flatten()
    }

    /// Text and type of every id below `vocab_size`.
    pub(super) fn vocabulary(&self, vocab_size: usize) -> Result<Vocabulary, FileError> {
        let mut tokens: Vec<Option<(&str, i32)>> = vec![None; vocab_size];
        let mut put = |key: &str, id: &Value, token: &'a str, kind: i32| {
            let slot = id.as_u64().and_then(|id| tokens.get_mut(id as usize));
            let slot =
                slot.ok_or_else(|| self.wrong(key, id, format!("an id below {vocab_size} (vocab_size)")))?;
            match slot {
                Some((other, _)) if *other != token => {
                    Err(self.wrong(key, id, format!("an id of its own: {other:?} has it already")))
                }
                _ => {
                    *slot = Some((token, kind));
                    Ok(())
                }
            }
        };
        let Some(vocabulary) = self.root["model"]["vocab"].as_object() else {
            return Err(self.wrong("model.vocab", &self.root["model"]["vocab"], "an object"));
        };
        let bytes = self.root["model"]["byte_fallback"] == true;
        for (token, id) in vocabulary {
            let kind = match () {
                () if bytes && byte_of(token).is_some() => BYTE,
                // llama.cpp makes it a control token regardless.
                () if control_texts::contains(token) => CONTROL,
                () => NORMAL,
            };
            put(&format!("model.vocab.{token}"), id, token, kind)?;
        }
        let unknown = self.root["model"]["unk_token"].as_str();
        for token in self.added_tokens() {
            let Some(content) = token["content"].as_str() else {
                return Err(self.wrong("added_tokens.content", &token["content"], "a text"));
            };
            for key in ["lstrip", "rstrip", "single_word"] {
                if token[key] == true {
                    return Err(self.wrong(&format!("added_tokens.{content}.{key}"), &token[key], "false"));
                }
            }
            let kind = match token["special"] == true || looks_special(content) {
                _ if unknown == Some(content) => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            put(&format!("added_tokens.{content}"), &token["id"], content, kind)?;
        }
        let mut seen = HashMap::new();
        let mut found = Vocabulary::default();
        for (id, slot) in tokens.into_iter().enumerate() {
            let (text, kind) = slot.map_or((filler(id), UNUSED), |(text, kind)| (text.to_owned(), kind));
            if let Some(first) = seen.insert(text.clone(), id) {
                let expected = format!("one id: {text:?} is {first} and {id}");
                return Err(self.wrong("model.vocab", &text.as_str().into(), expected));
            }
            found.texts.push(text);
            found.types.push(kind);
        }
        Ok(found)
    }

    /// Merges as pairs. A part must not contain a space, which separates the parts in a GGUF file.
    pub(super) fn merges(&self) -> Result<Vec<(&'a str, &'a str)>, FileError> {
        let found = &self.root["model"]["merges"];
        let Some(merges) = found.as_array() else { return Err(self.wrong("model.merges", found, "a list")) };
        let one = |merge: &'a Value| {
            let parts: Option<Vec<&str>> = match merge {
                Value::String(text) => Some(text.split(' ').collect()),
                Value::Array(parts) => parts.iter().map(Value::as_str).collect(),
                _ => None,
            };
            match parts.as_deref() {
                Some(&[a, b]) if ![a, b].iter().any(|part| part.is_empty() || part.contains(' ')) => {
                    Ok((a, b))
                }
                _ => Err(self.wrong("model.merges", merge, "two tokens without spaces")),
            }
        };
        merges.iter().map(one).collect()
    }

    /// What the post-processor puts around a text.
    pub(super) fn ends(&self, ids: &TokenIds) -> Result<Ends, FileError> {
        let post = &self.root["post_processor"];
        let expected = "null, ByteLevel, or a template with at most bos before and eos after the text";
        let processors = match post["type"].as_str() {
            Some("Sequence") => post["processors"].as_array().map_or(&[][..], Vec::as_slice),
            _ => std::slice::from_ref(post),
        };
        let mut ends = Ends { bos: false, eos: false, parted_pair: false };
        for processor in processors {
            match processor["type"].as_str() {
                Some("ByteLevel") => {}
                None if processor.is_null() => {}
                Some("TemplateProcessing") => {
                    let list = |key: &str| processor[key].as_array().map_or(&[][..], Vec::as_slice);
                    let single = list("single");
                    let is_text = |item: &Value| item.get("Sequence").is_some();
                    let Some(at) = single.iter().position(is_text) else {
                        return Err(self.wrong("post_processor", post, expected));
                    };
                    let is = |items: &[Value], id: Option<u32>| match items {
                        [] => Some(false),
                        [one] => {
                            let name = one["SpecialToken"]["id"].as_str()?;
                            let named = processor["special_tokens"][name]["ids"][0].as_u64();
                            (named.is_some() && named == id.map(u64::from)).then_some(true)
                        }
                        _ => None,
                    };
                    match (is(&single[..at], ids.bos), is(&single[at + 1..], ids.eos.first().copied())) {
                        (Some(bos), Some(eos)) => {
                            // Inside what surrounds a single text.
                            let pair = list("pair");
                            let inner = pair.len().saturating_sub(usize::from(bos) + usize::from(eos));
                            ends = Ends { bos, eos, parted_pair: inner > 2 };
                        }
                        _ => return Err(self.wrong("post_processor", post, expected)),
                    }
                }
                _ => return Err(self.wrong("post_processor", post, expected)),
            }
        }
        Ok(ends)
    }
}

/// The byte of a token such as `<0x0A>`.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
