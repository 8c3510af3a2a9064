//! The small files of a Hugging Face model: `tokenizer.json`, `tokenizer_config.json`, chat
//! templates.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::file_error::FileError;
use super::hugging_face::{TextSide, read_object, write_json};
use super::hugging_face_config::{self, TokenIds};

const CONFIG: &str = "tokenizer_config.json";
/// Names of special tokens, for folders whose `tokenizer_config.json` doesn't describe each token.
pub(super) const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// How answers are generated; its end tokens take precedence over those of `config.json`.
pub(super) const GENERATION: &str = "generation_config.json";
/// The template; takes precedence over that of `tokenizer_config.json`.
pub(super) const TEMPLATE: &str = "chat_template.jinja";
/// Folder of named templates.
pub(super) const NAMED_TEMPLATES: &str = "additional_chat_templates";
/// Name of the template that is used by default.
const DEFAULT_TEMPLATE: &str = "default";

/// Reads the text side of a folder; `ids` are those that its `config.json` names.
///
/// # Errors
/// Files that are missing or not JSON, templates that are not strings.
pub(super) fn load(folder: &Path, mut ids: TokenIds) -> Result<TextSide, FileError> {
    let mut tokenizer = read_object(&folder.join("tokenizer.json"))?;
    // Settings left over from one use of the tokenizer, not meant for others.
    for key in ["truncation", "padding"] {
        tokenizer.insert(key.to_owned(), Value::Null);
    }
    let tokenizer = Value::Object(tokenizer);
    let path = folder.join(CONFIG);
    let optional = |path: &Path| if path.exists() { read_object(path) } else { Ok(Map::new()) };
    let mut config = optional(&path)?;
    if !config.contains_key("added_tokens_decoder") {
        // As in transformers, which reads these names for older files.
        let names = optional(&folder.join(SPECIAL_TOKENS))?;
        config.extend(names.into_iter().filter(|(_, token)| !token.is_null()));
    }
    let path_of_ends = folder.join(GENERATION);
    let ends = hugging_face_config::ends(&path_of_ends, &optional(&path_of_ends)?)?;
    if !ends.is_empty() {
        ids.eos = ends;
    }
    let ids = with_named(ids, &config, &tokenizer);
    let (chat_template, named_templates) = templates(folder, &path, &config)?;
    Ok(TextSide { tokenizer, chat_template, named_templates, ids })
}

/// The tokens that `tokenizer_config.json` names take precedence over the ids of `config.json`:
/// chat models often name the end of a turn only there.
fn with_named(ids: TokenIds, config: &Map<String, Value>, tokenizer: &Value) -> TokenIds {
    let added = tokenizer["added_tokens"].as_array();
    let named = |key: &str| {
        let entry = config.get(key)?;
        let content = entry.as_str().or_else(|| entry["content"].as_str())?;
        let token = added?.iter().find(|token| token["content"] == content)?;
        u32::try_from(token["id"].as_u64()?).ok()
    };
    let mut eos: Vec<u32> = named("eos_token").into_iter().collect();
    for id in ids.eos {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    TokenIds {
        bos: named("bos_token").or(ids.bos),
        eos,
        pad: named("pad_token").or(ids.pad),
        unk: named("unk_token").or(ids.unk),
    }
}

type Templates = (Option<String>, Vec<(String, String)>);

/// The template of `chat_template.jinja` with the named ones next to it, or else those of
/// `tokenizer_config.json`.
fn templates(folder: &Path, path: &Path, config: &Map<String, Value>) -> Result<Templates, FileError> {
    let file = folder.join(TEMPLATE);
    if file.exists() {
        return Ok((Some(read_text(&file)?), named_files(&folder.join(NAMED_TEMPLATES))?));
    }
    let wrong = |found: &Value| {
        let expected = "a text, or a list of {name, template}";
        Err(FileError::key(path, "chat_template", found.to_string(), expected))
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok((None, vec![])),
        Some(Value::String(template)) => Ok((Some(template.clone()), vec![])),
        Some(Value::Array(list)) => {
            let (mut default, mut named) = (None, Vec::new());
            for entry in list {
                match (entry["name"].as_str(), entry["template"].as_str()) {
                    (Some(DEFAULT_TEMPLATE), Some(template)) => default = Some(template.to_owned()),
                    (Some(name), Some(template)) => named.push((name.to_owned(), template.to_owned())),
                    _ => return wrong(entry),
                }
            }
            Ok((default, named))
        }
        Some(other) => wrong(other),
    }
}

/// The templates of a folder, by name.
fn named_files(folder: &Path) -> Result<Vec<(String, String)>, FileError> {
    if !folder.exists() {
        return Ok(vec![]);
    }
    let mut paths: Vec<PathBuf> = fs_err::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(FileError::io(folder))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    let one = |path: PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, read_text(&path)?))
    };
    paths.into_iter().map(one).collect()
}

fn read_text(path: &Path) -> Result<String, FileError> {
    fs_err::read_to_string(path).map_err(FileError::io(path))
}

/// Writes `tokenizer.json` and `tokenizer_config.json`, each atomically.
///
/// # Errors
/// The disk.
pub(super) fn save(folder: &Path, text: &TextSide) -> Result<(), FileError> {
    write_json(folder.join("tokenizer.json"), &text.tokenizer)?;
    write_json(folder.join(CONFIG), &tokenizer_config(text))
}

/// `tokenizer_config.json`: the special tokens by text, and the templates.
fn tokenizer_config(text: &TextSide) -> Value {
    let added = text.tokenizer.get("added_tokens").and_then(Value::as_array);
    let content = |id: u32| {
        let token = added.into_iter().flatten().find(|token| token["id"].as_u64() == Some(id.into()));
        token.map_or(Value::Null, |token| token["content"].clone())
    };
    let templates = if text.named_templates.is_empty() {
        json!(text.chat_template)
    } else {
        let default = text.chat_template.iter().map(|template| (DEFAULT_TEMPLATE, template.as_str()));
        let named = text.named_templates.iter().map(|(name, template)| (name.as_str(), template.as_str()));
        default.chain(named).map(|(name, template)| json!({"name": name, "template": template})).collect()
    };
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text.ids.bos.map(content),
        "eos_token": text.ids.eos.first().map(|&id| content(id)),
        "pad_token": text.ids.pad.map(content),
        "clean_up_tokenization_spaces": false,
        "chat_template": templates,
    });
    if let Some(unknown) = text.ids.unk {
        config["unk_token"] = content(unknown);
    }
    config
}
