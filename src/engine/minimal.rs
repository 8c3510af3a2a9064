//! A small instance of a JSON schema: what a fake engine answers. Not a validator; unknown keywords are ignored.

use serde_json::{Map, Value, json};

/// Schemas nest at most this deep.
const DEPTH: usize = 64;
/// Characters of a text, and items of an array, that an instance may be forced to have.
const LENGTH: u64 = 10_000;

/// A value that validates against the common keywords of `schema`: const, enum, type, properties, required, items,
/// minItems, minLength, minimum, local `$ref`, anyOf/oneOf/allOf (first branch).
///
/// # Errors
/// A schema that isn't an object or boolean, `false`, a `$ref` that leads nowhere, nesting without end; the message says which.
pub fn minimal_instance(schema: &Value) -> Result<Value, String> {
    instance(schema, schema, 0)
}

fn instance(root: &Value, schema: &Value, depth: usize) -> Result<Value, String> {
    if depth > DEPTH {
        return Err(format!("the schema nests deeper than {DEPTH} levels"));
    }
    let Value::Object(keys) = schema else {
        return match schema {
            Value::Bool(true) => Ok(Value::Null),
            other => Err(format!("a schema must be an object, found {other}")),
        };
    };
    if let Some(value) = keys.get("const") {
        return Ok(value.clone());
    }
    if let Some(value) = keys.get("enum").and_then(Value::as_array).and_then(|values| values.first()) {
        return Ok(value.clone());
    }
    if let Some(reference) = keys.get("$ref").and_then(Value::as_str) {
        let target = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
        let target = target.ok_or_else(|| format!("$ref {reference:?} leads nowhere"))?;
        return instance(root, target, depth + 1);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(first) = keys.get(key).and_then(Value::as_array).and_then(|branches| branches.first()) {
            return instance(root, first, depth + 1);
        }
    }
    let kind = match keys.get("type") {
        Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str),
        Some(kind) => kind.as_str(),
        None if keys.contains_key("properties") => Some("object"),
        None if keys.contains_key("items") => Some("array"),
        None => Some("null"),
    };
    let number = |key: &str| match keys.get(key).and_then(Value::as_u64).unwrap_or(0) {
        length @ ..=LENGTH => Ok(length as usize),
        length => Err(format!("{key} is {length}; at most {LENGTH} are written here")),
    };
    match kind {
        Some("string") => Ok(Value::String("x".repeat(number("minLength")?))),
        Some("integer" | "number") => Ok(keys.get("minimum").cloned().unwrap_or(json!(0))),
        Some("boolean") => Ok(json!(false)),
        Some("null") => Ok(Value::Null),
        Some("array") => {
            let item = keys.get("items").unwrap_or(&Value::Bool(true));
            (0..number("minItems")?)
                .map(|_| instance(root, item, depth + 1))
                .collect::<Result<_, _>>()
                .map(Value::Array)
        }
        Some("object") => {
            let mut object = Map::new();
            for name in
                keys.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
            {
                let property = keys.get("properties").and_then(|properties| properties.get(name));
                object.insert(
                    name.to_owned(),
                    instance(root, property.unwrap_or(&Value::Bool(true)), depth + 1)?,
                );
            }
            Ok(Value::Object(object))
        }
        other => Err(format!("unknown type {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_validate() {
        for schema in [
            json!({"type": "object", "properties": {"a": {"type": "string", "minLength": 3}, "b": {"$ref": "#/$defs/n"}},
                   "required": ["a", "b"], "additionalProperties": false, "$defs": {"n": {"type": "integer", "minimum": 7}}}),
            json!({"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2}),
            json!({"anyOf": [{"type": "null"}, {"type": "string"}]}),
            json!({"type": ["number", "null"]}),
        ] {
            let value = minimal_instance(&schema).unwrap();
            assert!(jsonschema::is_valid(&schema, &value), "{value} against {schema}");
        }
        assert!(minimal_instance(&json!({"$ref": "#/nowhere"})).unwrap_err().contains("nowhere"));
        assert!(minimal_instance(&json!({"$ref": "#"})).unwrap_err().contains("deeper"));
    }
}
