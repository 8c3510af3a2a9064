//! A byte-level BPE tokenizer as GGUF metadata, and back: the same ids in llama.cpp as in `tokenizers`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::file_error::FileError;
use super::hugging_face::TextSide;
use super::hugging_face_config::TokenIds;
use crate::gguf::{Gguf, Writer};

/// llama.cpp's token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Where a `tokenizer.json` says whether its texts are put in Unicode normal form C first. llama.cpp does not do that
/// itself; the key keeps the import exact.
const NORMALIZER_KEY: &str = "bespoke.tokenizer.normalizer";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is cut before merges apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// At the matches of a pattern.
    Pattern(&'static str),
    /// By GPT-2's pattern, which is built into the byte-level step.
    Gpt2,
    /// Single digits first, then GPT-2's pattern.
    DigitsGpt2,
}

/// llama.cpp's names, how they cut, and whether a word that is a token is taken whole, whatever the merges say.
const KNOWN: [(&str, Cut, bool); 5] = [
    ("gpt-2", Cut::Gpt2, false),
    ("smollm", Cut::DigitsGpt2, false),
    ("llama-bpe", Cut::Pattern(LLAMA3), true),
    ("dbrx", Cut::Pattern(LLAMA3), false),
    ("qwen2", Cut::Pattern(QWEN2), false),
];

/// Adds the tokenizer's keys. `path` is the `tokenizer.json`, for errors.
///
/// # Errors
/// Anything in the tokenizer that llama.cpp would do otherwise, by key.
pub fn write(text: &TextSide, vocab_size: usize, path: &Path, writer: &mut Writer) -> Result<(), FileError> {
    let json = Json { path, root: &text.tokenizer };
    let normalizer = json.normalizer()?;
    let pre = json.pre_tokenizer()?;
    json.no_surprises()?;
    let (tokens, types) = json.tokens(vocab_size)?;
    let (add_bos, add_eos) = json.added_ends(&text.ids)?;

    writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", pre);
    writer.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", types);
    writer.set("tokenizer.ggml.merges", json.merges()?);
    let in_vocabulary = |key: &str, id: u32| {
        let wrong = || FileError::key(path, key, id.to_string(), format!("less than {vocab_size}"));
        if (id as usize) < vocab_size { Ok(id) } else { Err(wrong()) }
    };
    if let Some(id) = text.ids.bos {
        writer.set("tokenizer.ggml.bos_token_id", in_vocabulary("bos_token_id", id)?);
    }
    // Without an end of its own, llama.cpp would take token 11 for it.
    match text.ids.eos.as_slice() {
        [] => return Err(FileError::key(path, "eos_token_id (of config.json)", "missing", "a token id")),
        ends @ ([_] | [_, _] | [_, _, _]) => {
            for (key, &id) in ["eos", "eot", "eom"].into_iter().zip(ends) {
                writer.set(format!("tokenizer.ggml.{key}_token_id"), in_vocabulary("eos_token_id", id)?);
            }
            if ends.len() == 1 {
                writer.set("tokenizer.ggml.eot_token_id", ends[0]);
            }
        }
        more => return Err(FileError::key(path, "eos_token_id", format!("{more:?}"), "at most three ids")),
    }
    if let Some(id) = text.ids.pad {
        writer.set("tokenizer.ggml.padding_token_id", in_vocabulary("pad_token_id", id)?);
    }
    writer.set("tokenizer.ggml.add_bos_token", add_bos).set("tokenizer.ggml.add_eos_token", add_eos);
    writer.set("tokenizer.ggml.add_space_prefix", false);
    if let Some(normalizer) = normalizer {
        writer.set(NORMALIZER_KEY, normalizer);
    }
    if let Some(template) = &text.chat_template {
        writer.set("tokenizer.chat_template", template.as_str());
    }
    Ok(())
}

/// Rebuilds the text side from the keys of a file that has passed `check_model`.
///
/// # Errors
/// Another kind of tokenizer than byte-level BPE with a known pre-tokenizer.
pub fn read(file: &Gguf) -> Result<TextSide, FileError> {
    let wrong = |key: &str, found: String, expected: &str| FileError::key(file.path(), key, found, expected);
    let model: &str = file.get("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(wrong("tokenizer.ggml.model", format!("{model:?}"), "\"gpt2\" (byte-level BPE)"));
    }
    let pre: &str = file.get("tokenizer.ggml.pre")?;
    let name = if matches!(pre, "llama3" | "llama-v3") { "llama-bpe" } else { pre };
    let Some(&(_, cut, ignore_merges)) = KNOWN.iter().find(|known| known.0 == name) else {
        return Err(wrong("tokenizer.ggml.pre", format!("{pre:?}"), &known_names()));
    };
    let tokens: &[String] = file.get("tokenizer.ggml.tokens")?;
    let types: &[i32] = file.find("tokenizer.ggml.token_type")?.unwrap_or_default();
    let (mut vocabulary, mut added) = (Map::new(), Vec::new());
    for (id, token) in tokens.iter().enumerate() {
        let kind = types.get(id).copied().unwrap_or(NORMAL);
        match kind {
            UNUSED if *token == filler(id) => continue,
            CONTROL | USER_DEFINED => added.push(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": kind == CONTROL,
            })),
            NORMAL | UNUSED => {}
            other => {
                return Err(wrong("tokenizer.ggml.token_type", format!("{other} at {id}"), "1, 3, 4 or 5"));
            }
        }
        vocabulary.insert(token.clone(), id.into());
    }
    let merges: &[String] = file.get("tokenizer.ggml.merges")?;
    let merges: Vec<_> = merges.iter().map(|merge| merge.split(' ').collect::<Vec<_>>()).collect();
    let normalizer = match file.find::<&str>(NORMALIZER_KEY)? {
        None => Value::Null,
        Some("NFC") => json!({"type": "NFC"}),
        Some(other) => return Err(wrong(NORMALIZER_KEY, format!("{other:?}"), "\"NFC\"")),
    };

    let id = |name: &str| file.find::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
    let mut eos: Vec<u32> = [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten().collect();
    eos.dedup();
    let ids = TokenIds { bos: id("bos")?, eos, pad: id("padding")? };
    let added_end = |name: &str, default: bool| -> Result<bool, FileError> {
        Ok(file.find(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(default))
    };
    let text = |id: Option<u32>| id.and_then(|id| tokens.get(id as usize)).map(|token| (token, id));
    let bos = if added_end("bos", ignore_merges)? { text(ids.bos) } else { None };
    let eos = if added_end("eos", false)? { text(ids.eos.first().copied()) } else { None };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": cut.to_json(),
        "post_processor": template_processing(bos, eos),
        "decoder": byte_level(true, true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": ignore_merges,
            "vocab": vocabulary,
            "merges": merges,
        },
    });
    let chat_template = file.find::<&str>("tokenizer.chat_template")?.map(str::to_owned);
    Ok(TextSide { tokenizer, chat_template, ids })
}

type Token<'a> = Option<(&'a String, Option<u32>)>;

/// The post-processor that puts these tokens around a text.
fn template_processing(bos: Token, eos: Token) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |(token, _): (&String, Option<u32>)| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let ends = |sequence: &str| {
        let sequence = json!({"Sequence": {"id": sequence, "type_id": 0}});
        bos.map(special).into_iter().chain([sequence]).chain(eos.map(special)).collect::<Vec<_>>()
    };
    let tokens: Map<_, _> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [ends("A"), ends("B")].concat();
    json!({"type": "TemplateProcessing", "single": ends("A"), "pair": pair, "special_tokens": tokens})
}

/// Text of an id that has no token: vocabularies are often padded to a round size.
fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

fn known_names() -> String {
    let names: Vec<_> = KNOWN.iter().map(|known| known.0).collect();
    format!("one of {}", names.join(", "))
}

fn byte_level(trim_offsets: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trim_offsets, "use_regex": use_regex})
}

impl Cut {
    fn to_json(self) -> Value {
        let sequence =
            |first: Value, last: Value| json!({"type": "Sequence", "pretokenizers": [first, last]});
        match self {
            Self::Gpt2 => byte_level(true, true),
            Self::DigitsGpt2 => {
                sequence(json!({"type": "Digits", "individual_digits": true}), byte_level(true, true))
            }
            Self::Pattern(pattern) => {
                let split = json!({
                    "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false
                });
                sequence(split, byte_level(true, false))
            }
        }
    }

    /// Whether a `pre_tokenizer` cuts like this. `trim_offsets` only concerns positions, not ids.
    fn is(self, found: &Value) -> bool {
        fn without_offsets(value: &Value) -> Value {
            match value {
                Value::Object(object) => {
                    let rest = object.iter().filter(|(key, _)| *key != "trim_offsets");
                    rest.map(|(key, value)| (key.clone(), without_offsets(value))).collect()
                }
                Value::Array(values) => values.iter().map(without_offsets).collect(),
                other => other.clone(),
            }
        }
        without_offsets(found) == without_offsets(&self.to_json())
    }
}

/// A `tokenizer.json`, and its path for errors.
struct Json<'a> {
    path: &'a Path,
    root: &'a Value,
}

impl<'a> Json<'a> {
    fn wrong(&self, key: &str, found: &Value, expected: impl Into<String>) -> FileError {
        let mut found = found.to_string();
        if found.len() > 200 {
            let cut = (0..=200).rev().find(|&at| found.is_char_boundary(at)).unwrap_or(0);
            found.replace_range(cut.., " ...");
        }
        FileError::key(self.path, key, found, expected)
    }

    fn normalizer(&self) -> Result<Option<&'static str>, FileError> {
        match (&self.root["normalizer"], self.root["normalizer"]["type"].as_str()) {
            (Value::Null, _) => Ok(None),
            (_, Some("NFC")) => Ok(Some("NFC")),
            (found, _) => Err(self.wrong("normalizer", found, "null or NFC")),
        }
    }

    /// llama.cpp's name of the way texts are cut.
    fn pre_tokenizer(&self) -> Result<&'static str, FileError> {
        let found = &self.root["pre_tokenizer"];
        let whole = self.root["model"]["ignore_merges"] == true;
        let same_cut: Vec<_> = KNOWN.iter().filter(|known| known.1.is(found)).collect();
        if same_cut.is_empty() {
            return Err(self.wrong("pre_tokenizer", found, format!("that of {}", known_names())));
        }
        match same_cut.iter().find(|known| known.2 == whole) {
            Some(known) => Ok(known.0),
            None => Err(self.wrong("model.ignore_merges", &whole.into(), (!whole).to_string())),
        }
    }

    /// Options of the model that llama.cpp does not have.
    fn no_surprises(&self) -> Result<(), FileError> {
        let model = &self.root["model"];
        // Old files name no type; only BPE has merges.
        if !model["type"].is_null() && model["type"] != "BPE" {
            return Err(self.wrong("model.type", &model["type"], "\"BPE\""));
        }
        for key in ["dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"] {
            if !model[key].is_null() && model[key] != "" {
                return Err(self.wrong(&format!("model.{key}"), &model[key], "null"));
            }
        }
        if model["byte_fallback"] == true {
            return Err(self.wrong("model.byte_fallback", &model["byte_fallback"], "false"));
        }
        match self.root["decoder"]["type"].as_str() {
            Some("ByteLevel") => Ok(()),
            _ => Err(self.wrong("decoder", &self.root["decoder"], "type ByteLevel")),
        }
    }

    /// Text and type of every id below `vocab_size`.
    fn tokens(&self, vocab_size: usize) -> Result<(Vec<String>, Vec<i32>), FileError> {
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
        for (token, id) in vocabulary {
            put(&format!("model.vocab.{token}"), id, token, NORMAL)?;
        }
        for token in self.root["added_tokens"].as_array().into_iter().flatten() {
            let Some(content) = token["content"].as_str() else {
                return Err(self.wrong("added_tokens.content", &token["content"], "a text"));
            };
            for key in ["lstrip", "rstrip", "single_word"] {
                if token[key] == true {
                    return Err(self.wrong(&format!("added_tokens.{content}.{key}"), &token[key], "false"));
                }
            }
            let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
            put(&format!("added_tokens.{content}"), &token["id"], content, kind)?;
        }
        let mut seen = HashMap::new();
        let mut types = Vec::with_capacity(vocab_size);
        let mut texts = Vec::with_capacity(vocab_size);
        for (id, slot) in tokens.into_iter().enumerate() {
            let (text, kind) = slot.map_or((filler(id), UNUSED), |(text, kind)| (text.to_owned(), kind));
            if let Some(first) = seen.insert(text.clone(), id) {
                let expected = format!("one id: {text:?} is {first} and {id}");
                return Err(self.wrong("model.vocab", &text.as_str().into(), expected));
            }
            texts.push(text);
            types.push(kind);
        }
        Ok((texts, types))
    }

    /// Merges as llama.cpp wants them: two tokens with a space between.
    fn merges(&self) -> Result<Vec<String>, FileError> {
        let found = &self.root["model"]["merges"];
        let Some(merges) = found.as_array() else { return Err(self.wrong("model.merges", found, "a list")) };
        let one = |merge: &Value| {
            let parts: Option<Vec<&str>> = match merge {
                Value::String(text) => Some(text.split(' ').collect()),
                Value::Array(parts) => parts.iter().map(Value::as_str).collect(),
                _ => None,
            };
            match parts.as_deref() {
                Some([a, b]) if ![a, b].iter().any(|part| part.is_empty() || part.contains(' ')) => {
                    Ok(format!("{a} {b}"))
                }
                _ => Err(self.wrong("model.merges", merge, "two tokens without spaces")),
            }
        };
        merges.iter().map(one).collect()
    }

    /// Whether the post-processor puts the beginning and the end of a sequence around a text.
    fn added_ends(&self, ids: &TokenIds) -> Result<(bool, bool), FileError> {
        let post = &self.root["post_processor"];
        let expected = "null, ByteLevel, or a template with at most bos before and eos after the text";
        let processors = match post["type"].as_str() {
            Some("Sequence") => post["processors"].as_array().map_or(&[][..], Vec::as_slice),
            _ => std::slice::from_ref(post),
        };
        let mut ends = (false, false);
        for processor in processors {
            match processor["type"].as_str() {
                Some("ByteLevel") => {}
                None if processor.is_null() => {}
                Some("TemplateProcessing") => {
                    let single = processor["single"].as_array().map_or(&[][..], Vec::as_slice);
                    let Some(at) = single.iter().position(|item| item.get("Sequence").is_some()) else {
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
                        (Some(bos), Some(eos)) => ends = (bos, eos),
                        _ => return Err(self.wrong("post_processor", post, expected)),
                    }
                }
                _ => return Err(self.wrong("post_processor", post, expected)),
            }
        }
        Ok(ends)
    }
}
