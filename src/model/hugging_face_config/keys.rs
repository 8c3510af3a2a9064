//! Reads an object of a `config.json` key by key. Errors name the key, what was found and what was
//! expected.

use std::path::Path;

use serde_json::{Map, Value};

use crate::model::file_error::FileError;

/// An object of the file, and its path.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) path: &'a Path,
    pub(super) object: &'a Map<String, Value>,
    pub(super) prefix: &'a str,
}

impl<'a> Keys<'a> {
    /// The value; `null` counts as missing.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The error for a key with a wrong value.
    pub(super) fn wrong(&self, key: &str, expected: impl Into<String>) -> FileError {
        let found = self.get(key).map_or("missing".to_owned(), found);
        let dot = if self.prefix.is_empty() { "" } else { "." };
        FileError::key(self.path, format!("{}{dot}{key}", self.prefix), found, expected)
    }

    /// The inner object of this key.
    pub(super) fn inner(&self, key: &'a str) -> Result<Option<Self>, FileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Self { path: self.path, object, prefix: key })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// A whole number from 1 to 2^31.
    pub(super) fn count(&self, key: &str) -> Result<usize, FileError> {
        let value = self.get(key).and_then(Value::as_u64).filter(|n| (1..=1 << 31).contains(n));
        value.map(|n| n as usize).ok_or_else(|| self.wrong(key, "a whole number above 0"))
    }

    /// As [`Self::count`], with a default for a missing key.
    pub(super) fn count_or(&self, key: &str, default: Option<usize>) -> Result<usize, FileError> {
        match (self.get(key), default) {
            (None, Some(value)) => Ok(value),
            _ => self.count(key),
        }
    }

    /// A number above 0.
    pub(super) fn positive(&self, key: &str) -> Result<f64, FileError> {
        let value = self.get(key).and_then(Value::as_f64).filter(|n| *n > 0.0 && n.is_finite());
        value.ok_or_else(|| self.wrong(key, "a number above 0"))
    }

    /// As [`Self::positive`], for a key that may be missing.
    pub(super) fn optional_positive(&self, key: &str) -> Result<Option<f64>, FileError> {
        self.get(key).map(|_| self.positive(key)).transpose()
    }

    /// True or false; `default` if the key is missing.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, FileError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A list of strings, if the key exists.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, FileError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|values| values.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.wrong(key, "a list of texts"))
    }
}

/// A value as an error shows it: objects and lists can be long.
fn found(value: &Value) -> String {
    const LONGEST: usize = 200;
    let mut text = value.to_string();
    if text.len() > LONGEST {
        let cut = (0..=LONGEST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.replace_range(cut.., " ...");
    }
    text
}
