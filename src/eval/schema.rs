//! Schema compliance (SC): the wire schema of an encoding plus its enums and limits. Every
//! violation is named.

use std::collections::HashSet;
use std::sync::LazyLock;

use serde_json::Value;

use crate::task::schema::encoding_faults;
use crate::task::{Encoding, encoding_schema};

static SCHEMA: LazyLock<Value> = LazyLock::new(encoding_schema);
static KEYS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let mut keys = HashSet::new();
    collect_keys(&SCHEMA, &mut keys);
    keys
});

/// All violations of the schema; empty if the answer complies. Enums and limits are checked only
/// if all fields exist with the right types.
pub fn breaches(answer: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk("", &SCHEMA, answer, &mut found);
    if found.is_empty() {
        match serde_json::from_value::<Encoding>(answer.clone()) {
            Ok(encoding) => found = encoding_faults(&encoding),
            Err(error) => found.push(error.to_string()),
        }
    }
    found
}

/// Whether a word is a key of the schema, at any level.
pub fn is_key(word: &str) -> bool {
    KEYS.contains(word)
}

/// Checks a value against the four kinds of schema that [`encoding_schema`] is made of.
/// Deserialising isn't enough, because serde accepts a list for a struct.
fn walk(path: &str, schema: &Value, value: &Value, found: &mut Vec<String>) {
    let expected = schema["type"].as_str().unwrap_or_default();
    match (expected, value) {
        ("string", Value::String(_)) | ("number", Value::Number(_)) => {}
        ("array", Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                walk(&format!("{path}[{index}]"), &schema["items"], item, found);
            }
        }
        ("object", Value::Object(fields)) => {
            let properties = schema["properties"].as_object().expect("an object schema lists its properties");
            let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            for (key, schema) in properties {
                match fields.get(key) {
                    Some(field) => walk(&below(key), schema, field, found),
                    None => found.push(format!("{}: missing", below(key))),
                }
            }
            for key in fields.keys().filter(|key| !properties.contains_key(*key)) {
                found.push(format!("{}: not a field of the schema", below(key)));
            }
        }
        (expected, value) => found.push(format!("{path}: found {}, expected {expected}", kind(value))),
    }
}

fn collect_keys(schema: &Value, keys: &mut HashSet<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (key, schema) in properties {
            keys.insert(key.clone());
            collect_keys(schema, keys);
        }
    }
    if schema["items"].is_object() {
        collect_keys(&schema["items"], keys);
    }
}

/// The JSON type of a value, as the schema names it.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({"gist": "g", "summary": "s", "content": "c", "narrative": "n", "concepts": ["a"],
            "structured_concepts": {"topics": [{"label": "l", "path": "p"}], "entities": [], "actions": [],
                "causality": []},
            "significance": "routine", "emotional_tone": "", "outcome": "unknown", "salience": 1})
    }

    #[test]
    fn each_breach_is_named() {
        assert!(breaches(&good()).is_empty());
        let cases: [(&str, Value, &str); 11] = [
            ("/gist", json!("é".repeat(61)), "gist: 61 characters"),
            ("/summary", json!("é".repeat(401)), "summary: 401 characters"),
            ("/outcome", json!("done"), "outcome: \"done\" is not one of success"),
            ("/salience", json!(true), "salience: found boolean, expected number"),
            ("/salience", json!(1.01), "salience: 1.01 is not between"),
            ("/concepts", json!([1]), "concepts[0]: found number, expected string"),
            ("/content", json!(null), "content: found null, expected string"),
            (
                "/structured_concepts/actions",
                json!({}),
                "structured_concepts.actions: found object, expected array",
            ),
            (
                "/structured_concepts/topics/0",
                json!(["l", "p"]),
                "structured_concepts.topics[0]: found array",
            ),
            (
                "/structured_concepts/topics/0",
                json!({"label": "x"}),
                "structured_concepts.topics[0].path: missing",
            ),
            (
                "/structured_concepts",
                json!([[], [], [], []]),
                "structured_concepts: found array, expected object",
            ),
        ];
        for (pointer, value, expected) in cases {
            let mut answer = good();
            *answer.pointer_mut(pointer).unwrap() = value;
            let found = breaches(&answer);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}, expected {expected}");
        }
    }

    #[test]
    fn missing_and_foreign_fields_break_it() {
        for field in good().as_object().unwrap().keys() {
            let mut answer = good();
            answer.as_object_mut().unwrap().shift_remove(field);
            assert_eq!(breaches(&answer), [format!("{field}: missing")]);
        }
        let mut answer = good();
        answer["notes"] = json!("");
        assert_eq!(breaches(&answer), ["notes: not a field of the schema"]);
    }

    #[test]
    fn keys_of_every_level_are_known() {
        assert!(["gist", "topics", "relation", "type"].into_iter().all(is_key));
        assert!(!is_key("string"));
    }
}
