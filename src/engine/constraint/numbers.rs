//! Numbers within bounds: JSON allows `1e999999`, and most readers fail on it.

use serde_json::{Map, Value, json};

/// Largest number, where the schema has no limit: a double holds all integers up to it.
const LARGEST: f64 = 1e15;

/// Numbers without bounds get some, in all schemas within `value`.
pub fn limit_numbers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(limit_numbers),
        Value::Object(keys) => {
            for (_, value) in keys
                .iter_mut()
                .filter(|(key, _)| !matches!(key.as_str(), "const" | "enum" | "default" | "examples"))
            {
                limit_numbers(value);
            }
            limit_number(keys);
        }
        _ => {}
    }
}

/// The same for this schema alone.
pub fn limit_number(schema: &mut Map<String, Value>) {
    let is_number = |kind: &Value| matches!(kind.as_str(), Some("number" | "integer"));
    let numeric = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(is_number),
        Some(kind) => is_number(kind),
        None => false,
    };
    let bound = |keys: [&str; 2]| keys.iter().find_map(|key| schema.get(*key)).map(Value::as_f64);
    let (low, high) = (bound(["minimum", "exclusiveMinimum"]), bound(["maximum", "exclusiveMaximum"]));
    if numeric && low.is_none() && high.is_none_or(|high| high.is_some_and(|high| high > -LARGEST)) {
        schema.insert("minimum".to_owned(), json!(-LARGEST));
    }
    if numeric && high.is_none() && low.is_none_or(|low| low.is_some_and(|low| low < LARGEST)) {
        schema.insert("maximum".to_owned(), json!(LARGEST));
    }
}
