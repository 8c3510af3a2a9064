//! Reads JSON as a type. Errors name the wrong field, and use JSON's type names.

use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Map, Value};

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

/// Reads an object as a type.
///
/// # Errors
/// The first field that is missing or of another type.
pub fn parse<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(object).map_err(|error| located(&error))
}

/// Moves the fields that the struct `T` knows out of an object, and reads them. A request is made
/// of several such structs, and each of its fields is read once.
///
/// # Errors
/// The first field that is missing or of another type.
pub fn take<T: DeserializeOwned>(object: &mut Map<String, Value>) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(Known(object)).map_err(|error| located(&error))
}

/// The fields of an object.
///
/// # Errors
/// The value is no object.
pub fn object(body: Value) -> Result<Map<String, Value>, FieldError> {
    match body {
        Value::Object(fields) => Ok(fields),
        other => Err(FieldError::new("body", format!("found {}, expected an object", kind(&other)))),
    }
}

/// For fields in which `null` is a value, and not the same as no field.
///
/// # Errors
/// Those of the deserializer.
pub fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Gives a struct its own fields of an object, and leaves the others there.
/// `#[serde(flatten)]` would lose the path of a wrong field.
struct Known<'a>(&'a mut Map<String, Value>);

impl<'de> Deserializer<'de> for Known<'_> {
    type Error = serde_json::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let all = std::mem::take(self.0).into_iter();
        let (own, others): (Map<String, Value>, Map<String, Value>) =
            all.partition(|(name, _)| names.contains(&name.as_str()));
        *self.0 = others;
        own.deserialize_any(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        std::mem::take(self.0).deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// serde's error with the path of its field.
fn located(error: &serde_path_to_error::Error<serde_json::Error>) -> FieldError {
    let path = error.path().to_string();
    let path = if path == "." { String::new() } else { path };
    // serde reports the object that lacks the field, but people look for the field itself.
    let message = error.inner().to_string();
    if let Some(name) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        let dot = if path.is_empty() { "" } else { "." };
        return FieldError::new(format!("{path}{dot}{name}"), "is missing");
    }
    let field = if path.is_empty() { "body".to_owned() } else { path };
    FieldError::new(field, in_words(&message))
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, PartialEq, Deserialize)]
    struct One {
        a: u8,
        #[serde(default, deserialize_with = "present")]
        b: Option<Value>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Other {
        c: Option<Vec<u8>>,
        #[serde(rename = "d.e")]
        d: Option<bool>,
    }

    #[test]
    fn each_struct_takes_its_own_fields_and_leaves_the_rest() {
        let mut body = object(json!({"x": 1, "c": [2], "a": 3, "d.e": true, "b": null, "y": {}})).unwrap();
        assert_eq!(take(&mut body), Ok(One { a: 3, b: Some(Value::Null) }));
        assert_eq!(Value::from(body.clone()), json!({"x": 1, "c": [2], "d.e": true, "y": {}}));
        assert_eq!(take(&mut body), Ok(Other { c: Some(vec![2]), d: Some(true) }));
        assert_eq!(Value::from(body.clone()), json!({"x": 1, "y": {}}));
        assert_eq!(take(&mut body), Ok(Other { c: None, d: None }));
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        let wrong = |body: Value| {
            let mut body = object(body).unwrap();
            let error = take::<Other>(&mut body).map(drop).and_then(|()| take::<One>(&mut body).map(drop));
            error.unwrap_err().to_string()
        };
        assert_eq!(wrong(json!({"b": 1})), "a: is missing");
        assert_eq!(wrong(json!({"a": -1})), "a: invalid value: integer `-1`, expected a whole number");
        assert_eq!(
            wrong(json!({"c": [1, "x"]})),
            "c[1]: invalid type: string \"x\", expected a whole number"
        );
        assert_eq!(wrong(json!({"d.e": 1})), "d.e: invalid type: integer `1`, expected a boolean");
        assert_eq!(object(json!([1])).unwrap_err().to_string(), "body: found an array, expected an object");
    }
}
