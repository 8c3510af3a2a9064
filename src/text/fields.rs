//! Reads JSON as a type. Errors name the wrong field, and use JSON's type names.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// A field that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Its path, such as `messages[2].role`.
    pub field: String,
    /// What was found and what was expected.
    pub message: String,
}

impl FieldError {
    /// An error about this field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// Reads the fields that `T` knows.
///
/// # Errors
/// The first field that is missing or of another type.
pub fn parse<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    if !value.is_object() {
        return Err(FieldError::new("body", format!("found {}, expected an object", kind(value))));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        // serde reports the object that lacks the field, but people look for the field itself.
        let message = error.into_inner().to_string();
        if let Some(name) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            let dot = if path.is_empty() { "" } else { "." };
            return FieldError::new(format!("{path}{dot}{name}"), "is missing");
        }
        let field = if path.is_empty() { "body".to_owned() } else { path };
        FieldError::new(field, in_words(&message))
    })
}

/// serde's message with JSON's type names instead of Rust's.
fn in_words(message: &str) -> String {
    let message = message.replace("a sequence", "an array");
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message };
    let expected = match expected {
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        "f32" | "f64" => "a number",
        name if name.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// The value for a message, truncated if long.
pub fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 40 { text } else { text.chars().take(39).chain(['…']).collect() }
}

/// The type of a value, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
