//! Files of an earlier model in a folder. Those that would take precedence over the new files, or
//! be read along with them, must go.

use std::path::{Path, PathBuf};

use super::file_error::FileError;
use super::hugging_face::INDEX;
use super::hugging_face_text::{GENERATION, NAMED_TEMPLATES, SPECIAL_TOKENS, TEMPLATE};

/// If a folder has an adapter, transformers applies it to the model that it names and ignores the
/// folder's own weights.
const ADAPTER: &str = "adapter_config.json";

/// Files that programs read instead of the written ones or along with them: an index of other
/// weights; templates, names of special tokens; another form of the tokenizer.
const FILES: [&str; 8] = [
    INDEX,
    TEMPLATE,
    "chat_template.json",
    SPECIAL_TOKENS,
    "added_tokens.json",
    GENERATION,
    "tokenizer.model",
    "pytorch_model.bin.index.json",
];

/// Refuses a folder whose adapter would replace the model's weights.
///
/// # Errors
/// The folder has the configuration of an adapter.
pub(super) fn refuse_adapter(folder: &Path) -> Result<(), FileError> {
    let adapter = folder.join(ADAPTER);
    if !adapter.exists() {
        return Ok(());
    }
    let why = "transformers loads the adapter, and the model that it names".to_owned();
    Err(FileError::TwoPlaces { one: adapter, other: folder.join("config.json"), why })
}

/// Removes the files of an earlier model.
///
/// # Errors
/// The operating system refuses.
pub(super) fn remove(folder: &Path) -> Result<(), FileError> {
    let mut found: Vec<PathBuf> = FILES.iter().map(|name| folder.join(name)).collect();
    found.extend(entries(folder, is_shard)?);
    found.extend(entries(&folder.join(NAMED_TEMPLATES), |name| {
        Path::new(name).extension().is_some_and(|form| form == "jinja")
    })?);
    for path in found {
        match std::fs::remove_file(&path) {
            Ok(()) => tracing::warn!(path = %path.display(), "a file of an earlier model was removed"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileError::io(&path)(error)),
        }
    }
    Ok(())
}

/// `model-00001-of-00002.safetensors`: programs without an index read every file of this form.
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(at, of)| digits(at) && digits(of))
}

/// Files of a folder whose names are wanted; none if there is no folder.
fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, FileError> {
    if !folder.is_dir() {
        return Ok(vec![]);
    }
    let all: Vec<PathBuf> = fs_err::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(FileError::io(folder))?;
    let is_wanted = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted);
    Ok(all.into_iter().filter(is_wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::is_shard;

    #[test]
    fn shards_are_told_by_their_numbers() {
        assert!(is_shard("model-00001-of-00002.safetensors"));
        for other in
            ["model.safetensors", "model-of-.safetensors", "model-1-of-x.safetensors", "a-1-of-2.safetensors"]
        {
            assert!(!is_shard(other), "{other}");
        }
    }
}
