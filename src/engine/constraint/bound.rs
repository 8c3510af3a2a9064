//! How many bytes closing an answer can take at most, whatever has been written of it: while more tokens than that are
//! left, nobody has to look for a way to close.

use serde_json::{Map, Value};

/// Deeper schemas have no bound.
const DEPTH: usize = 32;
/// The end of a broken character or escape, and the quotation mark.
const STRING: usize = 8;
/// The digits that `-`, `1.` or `1e+` lack.
const NUMBER: usize = 4;
/// Keywords whose effect is counted here, or that have none on the length of a closing.
const KNOWN: [&str; 17] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "const",
    "title",
    "description",
    "default",
    "examples",
    "$schema",
    "$id",
    "$comment",
    "maxLength",
    "minimum",
    "maximum",
];

/// Bytes of a value of a schema.
#[derive(Clone, Copy)]
struct Size {
    /// From nothing.
    whole: usize,
    /// From any point inside a value, at most.
    rest: usize,
}

/// An upper bound of the bytes that [`super::closing::search`] needs, from any state; `None` for schemas with keywords
/// that it does not count (lengths, patterns, references, free properties).
pub fn closing_bound(schema: &Value) -> Option<usize> {
    let size = size(schema, 0)?;
    Some(size.whole.max(size.rest))
}

fn size(schema: &Value, depth: usize) -> Option<Size> {
    let keys = schema.as_object().filter(|_| depth < DEPTH)?;
    if keys.keys().any(|key| !KNOWN.contains(&key.as_str())) {
        return None;
    }
    let fixed = |value: &Value| value.to_string().len();
    if let Some(value) = keys.get("const") {
        return Some(Size { whole: fixed(value), rest: fixed(value) });
    }
    if let Some(Value::Array(values)) = keys.get("enum") {
        let longest = values.iter().map(fixed).max()?;
        return Some(Size { whole: longest, rest: longest });
    }
    let kinds = match keys.get("type")? {
        Value::Array(kinds) => kinds.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?,
        kind => vec![kind.as_str()?],
    };
    let mut largest = Size { whole: 0, rest: 0 };
    for kind in kinds {
        let one = match kind {
            "string" => Size { whole: STRING, rest: STRING },
            // A limit can make a number go on until it has the limit's own digits.
            "number" | "integer" => {
                let digits = |limit| keys.get(limit).map_or(0, &fixed);
                let longest = NUMBER + digits("minimum").max(digits("maximum"));
                Size { whole: longest, rest: longest }
            }
            "boolean" | "null" => Size { whole: 5, rest: 5 },
            "array" => Size {
                whole: 2,
                rest: size(keys.get("items")?, depth + 1).map(|item| 2 + item.whole.max(item.rest))?,
            },
            "object" => object(keys, depth)?,
            _ => return None,
        };
        largest = Size { whole: largest.whole.max(one.whole), rest: largest.rest.max(one.rest) };
    }
    Some(largest)
}

fn object(keys: &Map<String, Value>, depth: usize) -> Option<Size> {
    if keys.get("additionalProperties") != Some(&Value::Bool(false)) {
        return None;
    }
    let (mut whole, mut deepest) = (2, 0);
    for (name, property) in keys.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let value = size(property, depth + 1)?;
        // Key with quotation marks and escapes, colon, comma.
        whole += Value::from(name.as_str()).to_string().len() + 2 + value.whole;
        deepest = deepest.max(value.rest);
    }
    Some(Size { whole, rest: whole + deepest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_schemas_have_a_bound_and_others_none() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array",
            "items": {"type": "object", "properties": {"c": {"type": "number"}}, "additionalProperties": false}}},
            "required": ["a", "b"], "additionalProperties": false});
        let bound = closing_bound(&schema).unwrap();
        assert!((r#"{"a":"","b":[]}"#.len()..80).contains(&bound), "{bound}");
        for unbounded in [
            json!({"type": "string", "minLength": 9}),
            json!({"type": "object", "properties": {}}),
            json!({"$ref": "#"}),
            json!({"type": "array"}),
            json!(true),
        ] {
            assert_eq!(closing_bound(&unbounded), None, "{unbounded}");
        }
    }
}
