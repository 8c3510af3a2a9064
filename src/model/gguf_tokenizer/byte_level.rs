//! Byte-level BPE (Llama 3, Qwen): texts are split by a pattern, their bytes mapped to characters,
//! and merged.

use serde_json::{Map, Value, json};

use super::json::Json;
use super::{NORMALIZER_KEY, Rebuilt, string_merges};
use crate::gguf::{Gguf, Writer};
use crate::model::file_error::FileError;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is split before merges apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// At the matches of a pattern.
    Pattern(&'static str),
    /// By GPT-2's pattern, which is built into the byte-level step.
    Gpt2,
    /// Single digits first, then GPT-2's pattern.
    DigitsGpt2,
}

/// llama.cpp's names, how they split, and whether a word that is a token stays whole whatever the
/// merges say.
const KNOWN: [(&str, Cut, bool); 6] = [
    ("gpt-2", Cut::Gpt2, false),
    ("smollm", Cut::DigitsGpt2, false),
    ("llama-bpe", Cut::Pattern(LLAMA3), true),
    ("dbrx", Cut::Pattern(LLAMA3), false),
    ("qwen2", Cut::Pattern(QWEN2), false),
    ("qwen35", Cut::Pattern(QWEN35), false),
];

/// Whether a `tokenizer.json` is of this kind.
pub(super) fn is_byte_level(json: Json) -> bool {
    json.root["decoder"]["type"] == "ByteLevel"
}

/// Writes the keys that only this kind has; tokens and types have been written.
pub(super) fn write(json: Json, writer: &mut Writer) -> Result<(), FileError> {
    let normalizer = normalizer(json)?;
    let pre = pre_tokenizer(json)?;
    let model = &json.root["model"];
    for (key, expected) in [("unk_token", "null"), ("byte_fallback", "false")] {
        if !matches!(&model[key], Value::Null | Value::Bool(false)) && model[key] != "" {
            return Err(json.wrong(&format!("model.{key}"), &model[key], expected));
        }
    }
    writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", pre);
    writer.set("tokenizer.ggml.merges", string_merges(&json.merges()?));
    if let Some(normalizer) = normalizer {
        writer.set(NORMALIZER_KEY, normalizer);
    }
    Ok(())
}

fn normalizer(json: Json) -> Result<Option<&'static str>, FileError> {
    match (&json.root["normalizer"], json.root["normalizer"]["type"].as_str()) {
        (Value::Null, _) => Ok(None),
        (_, Some("NFC")) => Ok(Some("NFC")),
        (found, _) => Err(json.wrong("normalizer", found, "null or NFC")),
    }
}

/// llama.cpp's name of the pre-tokenizer.
fn pre_tokenizer(json: Json) -> Result<&'static str, FileError> {
    let found = &json.root["pre_tokenizer"];
    let whole = json.root["model"]["ignore_merges"] == true;
    let same_cut: Vec<_> = KNOWN.iter().filter(|known| known.1.is(found)).collect();
    if same_cut.is_empty() {
        return Err(json.wrong("pre_tokenizer", found, format!("that of {}", known_names())));
    }
    match same_cut.iter().find(|known| known.2 == whole) {
        Some(known) => Ok(known.0),
        None => Err(json.wrong("model.ignore_merges", &whole.into(), (!whole).to_string())),
    }
}

/// Reads the parts of a `tokenizer.json` that are specific to this kind.
pub(super) fn read(file: &Gguf) -> Result<Rebuilt, FileError> {
    let wrong = |key: &str, found: String, expected: &str| FileError::key(file.path(), key, found, expected);
    let pre: &str = file.get("tokenizer.ggml.pre")?;
    let name = if matches!(pre, "llama3" | "llama-v3") { "llama-bpe" } else { pre };
    let Some(&(_, cut, ignore_merges)) = KNOWN.iter().find(|known| known.0 == name) else {
        return Err(wrong("tokenizer.ggml.pre", format!("{pre:?}"), &known_names()));
    };
    let merges: &[String] = file.get("tokenizer.ggml.merges")?;
    let normalizer = match file.find::<&str>(NORMALIZER_KEY)? {
        None => Value::Null,
        Some("NFC") => json!({"type": "NFC"}),
        Some(other) => return Err(wrong(NORMALIZER_KEY, format!("{other:?}"), "\"NFC\"")),
    };
    Ok(Rebuilt {
        normalizer,
        pre_tokenizer: cut.to_json(),
        decoder: byte_level(true, true),
        model: Map::from_iter([
            ("unk_token".to_owned(), Value::Null),
            ("fuse_unk".to_owned(), false.into()),
            ("byte_fallback".to_owned(), false.into()),
            ("ignore_merges".to_owned(), ignore_merges.into()),
        ]),
        merges: merges.iter().map(|merge| merge.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect(),
        adds_bos: ignore_merges,
    })
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

    /// Whether a `pre_tokenizer` splits like this. `trim_offsets` affects positions, not ids.
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
