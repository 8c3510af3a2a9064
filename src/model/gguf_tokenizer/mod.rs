//! Converts a BPE tokenizer to GGUF metadata and back, so that llama.cpp gives the same ids as
//! `tokenizers`.

mod byte_level;
mod json;
mod sentencepiece;

use std::path::Path;

use serde_json::{Map, Value, json};

use super::file_error::FileError;
use super::hugging_face::TextSide;
use super::hugging_face_config::TokenIds;
use crate::gguf::{Gguf, Writer};
use json::{Ends, Json};

/// llama.cpp's token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Whether a `tokenizer.json` normalises texts to Unicode normal form C first. llama.cpp doesn't;
/// the key keeps the import exact.
const NORMALIZER_KEY: &str = "bespoke.tokenizer.normalizer";

/// Adds the tokenizer's keys. `path` is the `tokenizer.json`, for errors.
///
/// # Errors
/// Anything that llama.cpp would do differently, by key.
pub fn write(text: &TextSide, vocab_size: usize, path: &Path, writer: &mut Writer) -> Result<(), FileError> {
    let json = Json { path, root: &text.tokenizer };
    json.no_surprises()?;
    let vocabulary = json.vocabulary(vocab_size)?;
    let ends = json.ends(&text.ids)?;
    if byte_level::is_byte_level(json) {
        byte_level::write(json, writer)?;
        writer.set("tokenizer.ggml.tokens", vocabulary.texts);
        writer.set("tokenizer.ggml.token_type", vocabulary.types);
        writer.set("tokenizer.ggml.add_eos_token", ends.eos);
    } else if sentencepiece::is_sentencepiece(json) {
        sentencepiece::write(json, vocabulary, writer)?;
        if ends.eos {
            writer.set("tokenizer.ggml.add_eos_token", true);
        }
    } else {
        let expected = "type ByteLevel, or with model.byte_fallback that of SentencePiece";
        return Err(json.wrong("decoder", &text.tokenizer["decoder"], expected));
    }
    writer.set("tokenizer.ggml.add_bos_token", ends.bos);
    if ends.parted_pair {
        writer.set("tokenizer.ggml.add_sep_token", false);
    }
    special_ids(&text.ids, vocab_size, path, writer)?;
    templates(text, writer);
    Ok(())
}

fn special_ids(ids: &TokenIds, vocab_size: usize, path: &Path, writer: &mut Writer) -> Result<(), FileError> {
    let mut set = |name: &str, key: &str, id: u32| {
        if id as usize >= vocab_size {
            return Err(FileError::key(path, key, id.to_string(), format!("less than {vocab_size}")));
        }
        writer.set(format!("tokenizer.ggml.{name}_token_id"), id);
        Ok(())
    };
    for (name, key, id) in [("bos", "bos_token_id", ids.bos), ("unknown", "unk_token", ids.unk)] {
        if let Some(id) = id {
            set(name, key, id)?;
        }
    }
    // Without an end token, llama.cpp would assume token 11.
    match ids.eos.as_slice() {
        [] => return Err(FileError::key(path, "eos_token_id (of config.json)", "missing", "a token id")),
        ends @ ([_] | [_, _] | [_, _, _]) => {
            for (name, &id) in ["eos", "eot", "eom"].into_iter().zip(ends) {
                set(name, "eos_token_id", id)?;
            }
        }
        more => return Err(FileError::key(path, "eos_token_id", format!("{more:?}"), "at most three ids")),
    }
    ids.pad.map_or(Ok(()), |id| set("padding", "pad_token_id", id))
}

/// The chat template, and the named ones.
fn templates(text: &TextSide, writer: &mut Writer) {
    // llama.cpp's converter allows only these characters in the name of a key.
    let plain = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let named: Vec<(String, &str)> =
        text.named_templates.iter().map(|(name, template)| (plain(name), template.as_str())).collect();
    for (name, template) in &named {
        writer.set(format!("tokenizer.chat_template.{name}"), *template);
    }
    if !named.is_empty() {
        writer.set("tokenizer.chat_templates", named.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
    }
    if let Some(template) = &text.chat_template {
        writer.set("tokenizer.chat_template", template.as_str());
    }
}

/// The parts that the two kinds of files store differently.
struct Rebuilt {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// Keys of the model, except vocabulary and merges.
    model: Map<String, Value>,
    merges: Vec<Vec<String>>,
    /// Whether llama.cpp puts the beginning of a sequence before a text by default.
    adds_bos: bool,
}

/// Rebuilds the text side from the keys of a file that has passed `check_model`.
///
/// # Errors
/// A kind of tokenizer that this program doesn't write.
pub fn read(file: &Gguf) -> Result<TextSide, FileError> {
    let rebuilt = match file.get("tokenizer.ggml.model")? {
        "gpt2" => byte_level::read(file)?,
        "llama" | "gemma4" => sentencepiece::read(file)?,
        other => {
            let (key, expected) = ("tokenizer.ggml.model", "\"gpt2\", \"llama\" or \"gemma4\" (BPE)");
            return Err(FileError::key(file.path(), key, format!("{other:?}"), expected));
        }
    };
    let tokens: &[String] = file.get("tokenizer.ggml.tokens")?;
    let (vocabulary, added) = vocabulary(file, tokens, rebuilt.model["byte_fallback"] == true)?;
    let id = |name: &str| file.find::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
    let mut eos: Vec<u32> = [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten().collect();
    eos.dedup();
    let ids = TokenIds { bos: id("bos")?, eos, pad: id("padding")?, unk: id("unknown")? };
    let added_end = |name: &str, default: bool| -> Result<bool, FileError> {
        Ok(file.find(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(default))
    };
    let ends = Ends {
        bos: added_end("bos", rebuilt.adds_bos)?,
        eos: added_end("eos", false)?,
        parted_pair: file.find::<bool>("tokenizer.ggml.add_sep_token")? == Some(false),
    };
    let mut model = json!({
        "type": "BPE",
        "dropout": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
    });
    let object = model.as_object_mut().expect("the literal above is an object");
    object.extend(rebuilt.model);
    object.insert("vocab".into(), vocabulary.into());
    object.insert("merges".into(), json!(rebuilt.merges));
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": rebuilt.normalizer,
        "pre_tokenizer": rebuilt.pre_tokenizer,
        "post_processor": template_processing(ends, &ids, tokens),
        "decoder": rebuilt.decoder,
        "model": model,
    });
    let chat_template = file.find::<&str>("tokenizer.chat_template")?.map(str::to_owned);
    let names: &[String] = file.find("tokenizer.chat_templates")?.unwrap_or_default();
    let named = |name: &String| -> Result<_, FileError> {
        let template: &str = file.get(&format!("tokenizer.chat_template.{name}"))?;
        Ok((name.clone(), template.to_owned()))
    };
    let named_templates = names.iter().map(named).collect::<Result<_, _>>()?;
    Ok(TextSide { tokenizer, chat_template, named_templates, ids })
}

/// `model.vocab` and `added_tokens`. With `pieces`, spaces in user-defined tokens stand for the
/// character that replaces spaces.
fn vocabulary(
    file: &Gguf,
    tokens: &[String],
    pieces: bool,
) -> Result<(Map<String, Value>, Vec<Value>), FileError> {
    let types: &[i32] = file.find("tokenizer.ggml.token_type")?.unwrap_or_default();
    let (mut vocabulary, mut added) = (Map::new(), Vec::new());
    for (id, token) in tokens.iter().enumerate() {
        let kind = types.get(id).copied().unwrap_or(NORMAL);
        let spaced = pieces && token.contains(' ');
        let content = if spaced { token.replace(' ', "▁") } else { token.clone() };
        match kind {
            UNUSED if *token == filler(id) => continue,
            CONTROL | USER_DEFINED | UNKNOWN => added.push(json!({
                "id": id,
                "content": content,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": spaced,
                "special": kind != USER_DEFINED,
            })),
            NORMAL | UNUSED | BYTE => {}
            other => {
                let key = "tokenizer.ggml.token_type";
                return Err(FileError::key(file.path(), key, format!("{other} at {id}"), "1 to 6"));
            }
        }
        vocabulary.insert(content, id.into());
    }
    Ok((vocabulary, added))
}

/// The post-processor that puts these ends around a text.
fn template_processing(ends: Ends, ids: &TokenIds, tokens: &[String]) -> Value {
    let text = |id: Option<u32>| id.and_then(|id| Some((tokens.get(id as usize)?, id)));
    let bos = if ends.bos { text(ids.bos) } else { None };
    let eos = if ends.eos { text(ids.eos.first().copied()) } else { None };
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special =
        |kind: u32| move |(token, _): (&String, u32)| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let around = |sequence: &str, kind: u32| {
        let sequence = json!({"Sequence": {"id": sequence, "type_id": kind}});
        bos.map(special(kind)).into_iter().chain([sequence]).chain(eos.map(special(kind))).collect::<Vec<_>>()
    };
    let tokens: Map<_, _> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = if ends.parted_pair {
        [around("A", 0), around("B", 1)].concat()
    } else {
        let second = json!({"Sequence": {"id": "B", "type_id": 1}});
        let at = bos.iter().len() + 1;
        let mut pair = around("A", 0);
        pair.insert(at, second);
        pair
    };
    json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens})
}

/// Text of an id that has no token; vocabularies are often padded to a round size.
fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Merges in llama.cpp's form: two tokens separated by a space.
fn string_merges(merges: &[(&str, &str)]) -> Vec<String> {
    merges.iter().map(|(left, right)| format!("{left} {right}")).collect()
}
