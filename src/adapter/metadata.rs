//! Configuration and origin of a safetensors spoke: texts in its `__metadata__`, or a JSON file
//! next to it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::container::Container;
use super::dropped::Json;
use super::keys::{Origin, bad};
use super::{Defect, Digest, Post, Refusal};

/// Keys of a spoke's origin, in `__metadata__` and in JSON.
pub(super) const ARCHITECTURE: &str = "architecture";
pub(super) const POST: &str = "post_sha256";
pub(super) const TOKENIZER: &str = "tokenizer_sha256";
pub(super) const PROMPT: &str = "prompt_id";
pub(super) const TASK: &str = "task";

/// Adds a spoke's origin to the texts of `__metadata__`.
pub(super) fn write_origin(texts: &mut HashMap<String, String>, origin: &Origin) {
    let Origin { architecture, post, tokenizer, prompt, task } = origin.clone();
    let digest = |digest: Option<Digest>| digest.map(|digest| digest.to_string());
    let all = [
        (ARCHITECTURE, architecture),
        (POST, digest(post)),
        (TOKENIZER, digest(tokenizer)),
        (PROMPT, prompt),
        (TASK, task),
    ];
    texts.extend(all.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?))));
}

/// The origin that training writes into the metadata of a spoke for this post.
pub fn origin_texts(post: &Post, prompt: Option<&str>, task: Option<&str>) -> BTreeMap<String, String> {
    texts_of(&Origin {
        architecture: Some(post.architecture.clone()),
        post: Some(post.identity()),
        tokenizer: Some(post.tokenizer),
        prompt: prompt.map(str::to_owned),
        task: task.map(str::to_owned),
    })
}

/// The same for a model that has no file yet. `hash` is the hash of its tensors as F32, which every
/// export of the model records.
pub fn unexported_origin_texts(
    architecture: &str,
    hash: Digest,
    prompt: Option<&str>,
    task: Option<&str>,
) -> BTreeMap<String, String> {
    texts_of(&Origin {
        architecture: Some(architecture.to_owned()),
        post: Some(hash),
        tokenizer: None,
        prompt: prompt.map(str::to_owned),
        task: task.map(str::to_owned),
    })
}

fn texts_of(origin: &Origin) -> BTreeMap<String, String> {
    let mut texts = HashMap::new();
    write_origin(&mut texts, origin);
    texts.into_iter().collect()
}

/// A spoke's configuration: the object of the JSON file next to it, or else the texts of
/// `__metadata__`.
#[derive(Debug)]
pub(super) struct Metadata<'a> {
    path: &'a Path,
    object: Map<String, Value>,
}

impl<'a> Metadata<'a> {
    /// The configuration of a file.
    pub fn new(container: &'a Container, side: Option<&'a Json>) -> Self {
        if let Some(Json { path, object }) = side {
            return Self { path, object: object.clone() };
        }
        let texts = match container {
            Container::Safetensors(file) => file.metadata(),
            Container::Gguf(_) => None,
        };
        let value = |(key, text): (&String, &String)| (key.clone(), Value::String(text.clone()));
        Self { path: container.path(), object: texts.into_iter().flatten().map(value).collect() }
    }

    /// A whole number, if the key is there.
    ///
    /// # Errors The value is no whole number.
    pub fn count(&self, key: &str) -> Result<Option<u32>, Refusal> {
        self.parsed(key, "a whole number", |value| value.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    /// A required whole number.
    ///
    /// # Errors The key is missing, or its value is no whole number.
    pub fn needed(&self, key: &str) -> Result<u32, Refusal> {
        self.count(key)?.ok_or_else(|| Refusal::new(self.path, Defect::NoConfig { key: key.to_owned() }))
    }

    /// A number, if the key is there.
    ///
    /// # Errors The value is no number.
    pub fn number(&self, key: &str) -> Result<Option<f32>, Refusal> {
        self.parsed(key, "a number", |value| value.as_f64().map(|number| number as f32))
    }

    /// The spoke's origin.
    ///
    /// # Errors
    /// A value that is no text, or a hash that is no SHA-256.
    pub fn origin(&self) -> Result<Origin, Refusal> {
        let digest = |key| self.parsed(key, "a SHA-256 in 64 hexadecimal digits", |_| None);
        let text = |key| self.parsed(key, "a text", |_| None);
        Ok(Origin {
            architecture: text(ARCHITECTURE)?,
            post: digest(POST)?,
            tokenizer: digest(TOKENIZER)?,
            prompt: text(PROMPT)?,
            task: text(TASK)?,
        })
    }

    /// `__metadata__` can only hold texts, so every value may also be written as a text.
    fn parsed<T: FromStr>(
        &self,
        key: &str,
        expected: &str,
        other: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let value = match self.object.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let parsed = match value {
            Value::String(text) => text.parse().ok(),
            value => other(value),
        };
        match parsed {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(Refusal::new(self.path, bad(key, value, expected))),
        }
    }
}
