//! SentencePiece's BPE as `tokenizers` runs it (Gemma): spaces become `▁`, the whole text is
//! merged, and characters without a token become bytes.
//!
//! llama.cpp has two forms of it. In files of kind `llama`, two neighbours merge if their joined
//! text is a token, the best score first. Published vocabularies work that way, and their merges
//! list every such pair. A vocabulary whose merges are a subset is written as kind `gemma4`, which
//! has explicit merges.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::json::{Json, Vocabulary, byte_of};
use super::{CONTROL, NORMAL, Rebuilt, USER_DEFINED, string_merges};
use crate::gguf::{Gguf, Writer};
use crate::model::file_error::FileError;

/// The replacement of a space.
const SPACE: char = '▁';
/// Score of tokens that no merge produces, below all others.
const UNMERGED: f32 = -1e9;

/// Whether a `tokenizer.json` is of this kind.
pub(super) fn is_sentencepiece(json: Json) -> bool {
    json.root["model"]["byte_fallback"] == true
}

/// Writes the keys that only this kind has, with the tokens and their types, which it may change.
pub(super) fn write(json: Json, mut vocabulary: Vocabulary, writer: &mut Writer) -> Result<(), FileError> {
    let expected = normalizer();
    if json.root["normalizer"] != expected {
        return Err(json.wrong("normalizer", &json.root["normalizer"], expected.to_string()));
    }
    // Never splits, because the normaliser leaves no space.
    let (cut, expected) = (&json.root["pre_tokenizer"], pre_tokenizer());
    if !cut.is_null() && *cut != expected {
        return Err(json.wrong("pre_tokenizer", cut, format!("null or {expected}")));
    }
    let decoder = &json.root["decoder"];
    if *decoder != self::decoder() {
        return Err(json.wrong("decoder", decoder, self::decoder().to_string()));
    }
    if json.root["model"]["ignore_merges"] == true {
        return Err(json.wrong("model.ignore_merges", &true.into(), "false"));
    }
    every_byte(json, &vocabulary)?;
    let merges = json.merges()?;
    let normalised: HashSet<&str> = json
        .added_tokens()
        .filter(|token| token["normalized"] == true)
        .filter_map(|token| token["content"].as_str())
        .collect();
    let made: HashSet<String> = merges.iter().map(|(left, right)| format!("{left}{right}")).collect();
    for (text, kind) in vocabulary.texts.iter_mut().zip(&mut vocabulary.types) {
        if *kind == USER_DEFINED && text.contains(SPACE) {
            if normalised.contains(text.as_str()) || !made.contains(text.as_str()) {
                // Matched before the text's spaces are replaced, and printed verbatim.
                *text = text.replace(SPACE, " ");
            } else {
                // Only merges produce it from spaces, as in `tokenizers`.
                *kind = NORMAL;
            }
        }
    }
    if let Some(scores) = scores(&vocabulary, &merges) {
        writer.set("tokenizer.ggml.model", "llama").set("tokenizer.ggml.pre", "default");
        writer.set("tokenizer.ggml.scores", scores);
    } else {
        let mixed = |part: &str| part.contains('\n') && part.chars().any(|c| c != '\n');
        if let Some((left, right)) = merges.iter().find(|(left, right)| mixed(&format!("{left}{right}"))) {
            let found = json!([left, right]);
            return Err(json.wrong("model.merges", &found, "line breaks apart from other text"));
        }
        writer.set("tokenizer.ggml.model", "gemma4");
        writer.set("tokenizer.ggml.merges", string_merges(&merges));
    }
    writer.set("tokenizer.ggml.tokens", vocabulary.texts);
    writer.set("tokenizer.ggml.token_type", vocabulary.types);
    writer.set("tokenizer.ggml.add_space_prefix", false);
    Ok(())
}

/// Checks that every byte has a token: `<0x0A>`, or for ASCII the character itself.
fn every_byte(json: Json, vocabulary: &Vocabulary) -> Result<(), FileError> {
    let texts: HashSet<&str> = vocabulary.texts.iter().map(String::as_str).collect();
    for byte in 0..=255u8 {
        let token = format!("<0x{byte:02X}>");
        let itself = byte.is_ascii().then(|| char::from(byte).to_string());
        if !texts.contains(token.as_str()) && !itself.is_some_and(|text| texts.contains(text.as_str())) {
            return Err(json.wrong("model.vocab", &token.into(), "a token for every byte"));
        }
    }
    Ok(())
}

/// Scores with which merging by score equals merging by `merges`; `None` if there are none.
fn scores(vocabulary: &Vocabulary, merges: &[(&str, &str)]) -> Option<Vec<f32>> {
    let ids: HashMap<&str, usize> =
        vocabulary.texts.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    let mut scores = vec![UNMERGED; vocabulary.texts.len()];
    let (mut made, mut last) = (0u32, None);
    for (left, right) in merges {
        let id = *ids.get(format!("{left}{right}").as_str())?;
        if last != Some(id) {
            // An earlier merge produced it with others in between: its merges have no common rank.
            if scores[id] > UNMERGED {
                return None;
            }
            scores[id] = -(made as f32);
            made += 1;
            last = Some(id);
        }
    }
    // f32 distinguishes integers up to here.
    if made > 1 << 24 {
        return None;
    }
    let listed: HashSet<(&str, &str)> = merges.iter().copied().collect();
    // A symbol of llama.cpp is a token or a single character.
    let symbol = |text: &str| ids.contains_key(text) || text.chars().nth(1).is_none();
    let all_listed = |text: &str| {
        let borders = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        borders.filter(|(left, right)| symbol(left) && symbol(right)).all(|way| listed.contains(&way))
    };
    // Tokens that are matched before merging can't be merged.
    let merged = vocabulary.texts.iter().zip(&vocabulary.types).filter(|(_, kind)| **kind != USER_DEFINED);
    merged.into_iter().all(|(text, _)| all_listed(text)).then_some(scores)
}

fn normalizer() -> Value {
    json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE.to_string()})
}

fn pre_tokenizer() -> Value {
    json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false})
}

fn decoder() -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": SPACE.to_string()}, "content": " "});
    json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]})
}

/// Reads the parts of a `tokenizer.json` that are specific to this kind.
pub(super) fn read(file: &Gguf) -> Result<Rebuilt, FileError> {
    let wrong = |key: &str, found: String, expected: &str| FileError::key(file.path(), key, found, expected);
    let listed = file.get::<&str>("tokenizer.ggml.model")? == "gemma4";
    for (key, default) in
        [("tokenizer.ggml.add_space_prefix", !listed), ("tokenizer.ggml.remove_extra_whitespaces", false)]
    {
        if file.find(key)?.unwrap_or(default) {
            return Err(wrong(key, "true".into(), "false: texts are read as they are"));
        }
    }
    let tokens: &[String] = file.get("tokenizer.ggml.tokens")?;
    let types: &[i32] = file.find("tokenizer.ggml.token_type")?.unwrap_or_default();
    let merges = if listed {
        let merges: &[String] = file.get("tokenizer.ggml.merges")?;
        let pair = |merge: &String| merge.split(' ').map(str::to_owned).collect();
        merges.iter().map(pair).collect()
    } else {
        ways(tokens, types, file.get("tokenizer.ggml.scores")?)
    };
    let unknown = types.iter().position(|kind| *kind == super::UNKNOWN).map(|id| tokens[id].clone());
    Ok(Rebuilt {
        normalizer: normalizer(),
        pre_tokenizer: pre_tokenizer(),
        decoder: decoder(),
        model: Map::from_iter([
            ("unk_token".to_owned(), json!(unknown)),
            ("fuse_unk".to_owned(), true.into()),
            ("byte_fallback".to_owned(), true.into()),
            ("ignore_merges".to_owned(), false.into()),
        ]),
        merges,
        adds_bos: true,
    })
}

/// All pairs that make a token, the best token first, as transformers lists them.
fn ways(tokens: &[String], types: &[i32], scores: &[f32]) -> Vec<Vec<String>> {
    let ids: HashMap<String, usize> =
        tokens.iter().enumerate().map(|(id, text)| (text.replace(' ', &SPACE.to_string()), id)).collect();
    let mut found = Vec::new();
    for (text, &id) in &ids {
        let kind = types.get(id).copied().unwrap_or(NORMAL);
        // llama.cpp merges by text, whatever the type of the token.
        if !matches!(kind, NORMAL | USER_DEFINED | CONTROL) || byte_of(text).is_some() {
            continue;
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                found.push((scores.get(id).copied().unwrap_or(UNMERGED), id, l, r, [left, right]));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    found.into_iter().map(|(.., parts)| parts.map(str::to_owned).to_vec()).collect()
}
