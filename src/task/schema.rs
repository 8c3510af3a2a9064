//! The encoding: the ten fields of a memory, their types, and their JSON Schema on the wire.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Name of the schema in `response_format.json_schema.name`.
pub const SCHEMA_NAME: &str = "encoding_response";
/// Values of `significance`, from least to most.
pub const SIGNIFICANCE: [&str; 4] = ["routine", "notable", "important", "critical"];
/// Values of `emotional_tone`.
pub const EMOTIONAL_TONE: [&str; 5] = ["neutral", "satisfying", "frustrating", "exciting", "concerning"];
/// Values of `outcome`.
pub const OUTCOME: [&str; 4] = ["success", "failure", "ongoing", "unknown"];
/// Maximum characters of a gist.
pub const GIST_LIMIT: usize = 60;
/// Maximum characters of a summary.
pub const SUMMARY_LIMIT: usize = 400;

/// Lists of an encoding, as JSON pointers, with the members of an item that identify it (none if
/// the item is a string). An encoding has no item twice.
pub const NAMES: [(&str, &[&str]); 5] = [
    ("/concepts", &[]),
    ("/structured_concepts/topics", &["label"]),
    ("/structured_concepts/entities", &["name"]),
    ("/structured_concepts/actions", &["verb", "object"]),
    ("/structured_concepts/causality", &["relation", "description"]),
];

/// Bytes that no text of an encoding needs to exceed, given those of the message with the event.
/// Of 440 right answers none had a text 200 bytes longer than its event.
pub fn longest_text(message: usize) -> usize {
    message + message / 4 + 400
}

/// The same for lists. None that the shipped model wrote about 80 foreign events was more than 341
/// bytes long.
pub fn longest_list(message: usize) -> usize {
    message / 4 + 400
}

/// A memory made from an event. Fields are written in this order; all are required.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoding {
    /// The subject, at most [`GIST_LIMIT`] characters.
    pub gist: String,
    /// The essence, at most [`SUMMARY_LIMIT`] characters.
    pub summary: String,
    /// All facts.
    pub content: String,
    /// The event as one sentence.
    pub narrative: String,
    /// Search words.
    pub concepts: Vec<String>,
    /// The contents by kind.
    pub structured_concepts: StructuredConcepts,
    /// One of [`SIGNIFICANCE`].
    pub significance: String,
    /// One of [`EMOTIONAL_TONE`].
    pub emotional_tone: String,
    /// One of [`OUTCOME`].
    pub outcome: String,
    /// How much it matters, 0 to 1.
    pub salience: f64,
}

/// The contents of an event in four lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StructuredConcepts {
    /// Subjects.
    pub topics: Vec<Topic>,
    /// Named things.
    pub entities: Vec<Entity>,
    /// What was done.
    pub actions: Vec<Action>,
    /// Why things happened.
    pub causality: Vec<Causality>,
}

/// A subject and its place in a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// Its name.
    pub label: String,
    /// From general to specific, separated by `/`.
    pub path: String,
}

/// A named thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entity {
    /// As the event writes it.
    pub name: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it appears, or empty.
    pub context: String,
}

/// Something done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What was done.
    pub verb: String,
    /// To what.
    pub object: String,
    /// How, or empty.
    pub details: String,
}

/// A reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Causality {
    /// The kind of reason.
    pub relation: String,
    /// The reason in the event's words.
    pub description: String,
}

impl Encoding {
    /// Compact JSON, the text that a model is trained to write.
    pub fn to_compact_json(&self) -> String {
        serde_json::to_string(self).expect("strings and a finite number always serialise")
    }
}

/// Errors of a well-typed encoding: values outside the fixed vocabularies (empty ones are allowed)
/// and exceeded limits.
pub fn encoding_faults(encoding: &Encoding) -> Vec<String> {
    let mut faults = Vec::new();
    let vocabularies: [(&str, &str, &[&str]); 3] = [
        ("significance", &encoding.significance, &SIGNIFICANCE),
        ("emotional_tone", &encoding.emotional_tone, &EMOTIONAL_TONE),
        ("outcome", &encoding.outcome, &OUTCOME),
    ];
    for (key, value, allowed) in vocabularies {
        if !value.is_empty() && !allowed.contains(&value) {
            faults.push(format!("{key}: {value:?} is not one of {}", allowed.join(", ")));
        }
    }
    for (key, value, limit) in
        [("gist", &encoding.gist, GIST_LIMIT), ("summary", &encoding.summary, SUMMARY_LIMIT)]
    {
        let length = value.chars().count();
        if length > limit {
            faults.push(format!("{key}: {length} characters, at most {limit} are allowed"));
        }
    }
    if !(0.0..=1.0).contains(&encoding.salience) {
        faults.push(format!("salience: {} is not between 0 and 1", encoding.salience));
    }
    faults
}

/// The JSON Schema of [`Encoding`] as clients send it: every field required, no others allowed, no
/// enums, no limits.
pub fn encoding_schema() -> Value {
    let text = || json!({"type": "string"});
    let list = |items: Value| json!({"type": "array", "items": items});
    let texts = |names: &[&str]| object(names.iter().map(|name| (*name, text())).collect());
    object(vec![
        ("gist", text()),
        ("summary", text()),
        ("content", text()),
        ("narrative", text()),
        ("concepts", list(text())),
        (
            "structured_concepts",
            object(vec![
                ("topics", list(texts(&["label", "path"]))),
                ("entities", list(texts(&["name", "type", "context"]))),
                ("actions", list(texts(&["verb", "object", "details"]))),
                ("causality", list(texts(&["relation", "description"]))),
            ]),
        ),
        ("significance", text()),
        ("emotional_tone", text()),
        ("outcome", text()),
        ("salience", json!({"type": "number"})),
    ])
}

/// Adds what the prompt says about an encoding and [`encoding_schema`] doesn't, where `schema`
/// leaves it open: the length of gist and summary, the three vocabularies, the range of the
/// salience. Every value of the result is valid under `schema`.
pub fn add_limits(schema: &mut Value) {
    let words = |words: &[&str]| ("enum", json!(words.iter().chain(&[""]).collect::<Vec<_>>()));
    let limits = [
        ("gist", "string", vec![("maxLength", json!(GIST_LIMIT))]),
        ("summary", "string", vec![("maxLength", json!(SUMMARY_LIMIT))]),
        ("significance", "string", vec![words(&SIGNIFICANCE)]),
        ("emotional_tone", "string", vec![words(&EMOTIONAL_TONE)]),
        ("outcome", "string", vec![words(&OUTCOME)]),
        ("salience", "number", vec![("minimum", json!(0)), ("maximum", json!(1))]),
    ];
    for (field, kind, keywords) in limits {
        let Some(Value::Object(property)) = schema.pointer_mut(&format!("/properties/{field}")) else {
            continue;
        };
        // If the schema says more than the type, that is respected.
        let open = property.keys().all(|key| matches!(key.as_str(), "type" | "title" | "description"));
        if open && property.get("type").and_then(Value::as_str) == Some(kind) {
            property.extend(keywords.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
    }
}

/// An object schema: these properties in this order, all required, no others.
fn object(properties: Vec<(&str, Value)>) -> Value {
    let required: Vec<&str> = properties.iter().map(|(name, _)| *name).collect();
    let properties: serde_json::Map<String, Value> =
        properties.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Event, gold};

    #[test]
    fn the_schema_takes_a_gold_and_nothing_else() {
        let schema = jsonschema::validator_for(&encoding_schema()).unwrap();
        let gold = gold::encode(&Event::new("git", "commit", "Fix worker_pool because the lock was held"));
        let good = serde_json::to_value(&gold).unwrap();
        assert!(schema.is_valid(&good));
        let keys: Vec<&String> = good.as_object().unwrap().keys().collect();
        let required = encoding_schema()["required"].clone();
        assert_eq!(
            serde_json::to_value(&keys).unwrap(),
            required,
            "fields are written in the schema's order"
        );

        for key in keys {
            let mut lacking = good.clone();
            lacking.as_object_mut().unwrap().shift_remove(key);
            assert!(!schema.is_valid(&lacking), "{key} may be absent");
        }
        let mut limited = encoding_schema();
        add_limits(&mut limited);
        let limited = jsonschema::validator_for(&limited).unwrap();
        assert!(limited.is_valid(&good));
        for (key, beyond) in [
            ("gist", json!("é".repeat(GIST_LIMIT + 1))),
            ("summary", json!("é".repeat(SUMMARY_LIMIT + 1))),
            ("significance", json!("huge")),
            ("emotional_tone", json!("angry")),
            ("outcome", json!("done")),
            ("salience", json!(1.5)),
        ] {
            let mut beyond_it = good.clone();
            beyond_it[key] = beyond;
            assert!(schema.is_valid(&beyond_it) && !limited.is_valid(&beyond_it), "{key}");
        }
        let mut own = json!({"type": "object", "properties": {"gist": {"type": "string", "maxLength": 90}, "salience": {"type": "string"}}});
        let before = own.clone();
        add_limits(&mut own);
        assert_eq!(own, before, "what a schema says itself stays");
        let mut deep = good.clone();
        deep["structured_concepts"]["topics"][0]["extra"] = json!(1);
        assert!(!schema.is_valid(&deep));
    }
}
