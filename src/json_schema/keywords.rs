//! Says what each JSON Schema keyword holds, in every draft from 4 to 2020-12.

use serde_json::{Map, Value};

use super::document::step;

/// The kind of value that a keyword has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A schema.
    Schema,
    /// A list of schemas.
    Schemas,
    /// A schema, or a list of them (`items`).
    Either,
    /// Schemas by names that are data. A member that is a list of names (`dependencies`) is no
    /// schema.
    Map,
    /// Anything else: values, names, limits, and unknown keywords.
    Data,
}

/// The kind of value that `keyword` has.
pub fn holds(keyword: &str) -> Holds {
    match keyword {
        "additionalItems"
        | "additionalProperties"
        | "contains"
        | "contentSchema"
        | "else"
        | "if"
        | "not"
        | "propertyNames"
        | "then"
        | "unevaluatedItems"
        | "unevaluatedProperties" => Holds::Schema,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Holds::Schemas,
        "items" => Holds::Either,
        "$defs" | "definitions" | "dependencies" | "dependentSchemas" | "patternProperties"
        | "properties" => Holds::Map,
        _ => Holds::Data,
    }
}

/// The schemas directly inside a schema, each with the path to it. Skips a value that is in the
/// place of a schema but can't be one.
pub fn inside(schema: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (keyword, value) in schema {
        match (holds(keyword), value) {
            (Holds::Schema | Holds::Either, Value::Object(_) | Value::Bool(_)) => {
                found.push((step("", keyword), value));
            }
            (Holds::Schemas | Holds::Either, Value::Array(items)) => {
                let at = |index: usize| step(&step("", keyword), &index.to_string());
                found.extend(items.iter().enumerate().map(|(index, item)| (at(index), item)));
            }
            (Holds::Map, Value::Object(entries)) => {
                let at = |name: &str| step(&step("", keyword), name);
                found.extend(entries.iter().map(|(name, entry)| (at(name), entry)));
            }
            _ => {}
        }
    }
    found.retain(|(_, value)| value.is_object() || value.is_boolean());
    found
}

/// Visits a schema and all schemas in it with their paths, outer ones first.
pub fn walk<'v>(schema: &'v Value, path: &str, visit: &mut impl FnMut(&str, &'v Value)) {
    visit(path, schema);
    for (way, inner) in schema.as_object().map(inside).unwrap_or_default() {
        walk(inner, &format!("{path}{way}"), visit);
    }
}

/// Changes a schema and all schemas in it, inner ones first.
pub fn walk_mut(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(keywords) = schema else { return };
    for (keyword, value) in keywords.iter_mut() {
        match (holds(keyword), value) {
            (Holds::Schema | Holds::Either, inner @ Value::Object(_)) => walk_mut(inner, change),
            (Holds::Schemas | Holds::Either, Value::Array(items)) => {
                for item in items {
                    walk_mut(item, change);
                }
            }
            (Holds::Map, Value::Object(entries)) => {
                for entry in entries.values_mut() {
                    walk_mut(entry, change);
                }
            }
            _ => {}
        }
    }
    change(keywords);
}
