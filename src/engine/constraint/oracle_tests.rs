//! Tests with random schemas, random choices of tokens and small budgets. Each answer validates by
//! an independent validator, or the schema was refused before the first token, with a place.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use super::tests::{answer, grammars, words};
use super::*;
use crate::engine::{EngineError, FinishReason};

const NAMES: [&str; 6] = ["a", "ab", "gist", "x_1", "long \"name\"", "é"];
const PATTERNS: [&str; 9] =
    ["^a", "b$", "^x_[0-9]{1,3}$", "^a$", "^[a-z]{0,4}$", "s", "^(the )*ab$", "^gist|é$", "^[^a]{2}$"];
const FORMATS: [&str; 12] = [
    "date",
    "time",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "json-pointer",
    "iri",
];

fn names<'n>(rng: &mut ChaCha8Rng) -> Vec<&'n str> {
    NAMES.iter().copied().filter(|_| rng.random_bool(0.4)).collect()
}

fn limits(rng: &mut ChaCha8Rng, schema: &mut Map<String, Value>, least: &str, most: &str, up_to: u64) {
    let low = rng.random_range(0..up_to);
    if rng.random_bool(0.4) {
        schema.insert(least.to_owned(), json!(low));
    }
    if rng.random_bool(0.4) {
        schema.insert(most.to_owned(), json!(rng.random_range(low..up_to + 2)));
    }
}

fn number(rng: &mut ChaCha8Rng) -> Value {
    match rng.random_range(0..6) {
        0 => json!(rng.random_range(-20..20)),
        1 => json!(rng.random_range(-9_007_199_254_740_999_i64..9_007_199_254_740_999)),
        2 => json!(f64::from(rng.random_range(-2000..2000)) / 16.0),
        3 => json!(rng.random::<i64>()),
        4 => json!(rng.random::<u64>()),
        // Few digits and no large power of ten, because serde_json reads some other numbers as
        // their neighbours.
        _ => json!(f64::from(rng.random_range(-20_000..20_000)) * 1e15),
    }
}

fn data(rng: &mut ChaCha8Rng) -> Value {
    match rng.random_range(0..8) {
        0 => Value::Null,
        1 => json!(rng.random_bool(0.5)),
        2 | 3 => number(rng),
        4 => json!(*["", "routine", "a\u{1}\u{7f}", "\u{2028}\"\\", "𝄞"].choose(rng).unwrap()),
        5 => json!({"type": "number", "$ref": "#/nowhere"}),
        6 => json!([data(rng), "x"]),
        _ => json!({"a": data(rng)}),
    }
}

/// Adds keywords of one type, or of no particular type.
fn keywords(rng: &mut ChaCha8Rng, depth: usize, schema: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| drop(schema.insert(key.to_owned(), value));
    match rng.random_range(0..if depth > 2 { 6 } else { 11 }) {
        0 => put("type", json!(*["null", "boolean", "string", "integer", "number"].choose(rng).unwrap())),
        1 => {
            put("type", json!(*["integer", "number"].choose(rng).unwrap()));
            for key in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
                if rng.random_bool(0.25) {
                    put(key, number(rng));
                }
            }
            if rng.random_bool(0.2) {
                // The validator divides doubles, and is wrong about larger numbers.
                put("minimum", json!(rng.random_range(-9000..0)));
                put("maximum", json!(rng.random_range(0..9_000_000)));
                put("multipleOf", json!(rng.random_range(1..40)));
            }
        }
        2 => {
            put("type", json!("string"));
            limits(rng, schema, "minLength", "maxLength", 8);
        }
        3 => {
            put("type", json!("string"));
            put("pattern", json!(*PATTERNS.choose(rng).unwrap()));
            if rng.random_bool(0.3) {
                limits(rng, schema, "minLength", "maxLength", 8);
            }
        }
        4 => {
            put("type", json!("string"));
            put("format", json!(*FORMATS.choose(rng).unwrap()));
        }
        5 => {
            if rng.random_bool(0.4) {
                put("const", data(rng));
            } else {
                put("enum", (0..rng.random_range(1..5)).map(|_| data(rng)).collect());
            }
        }
        6 | 7 => {
            put("type", json!(if rng.random_bool(0.8) { json!("array") } else { json!(["array", "null"]) }));
            if rng.random_bool(0.7) {
                put("items", schema_of(rng, depth + 1));
            }
            if rng.random_bool(0.3) {
                put("prefixItems", (0..rng.random_range(1..4)).map(|_| schema_of(rng, depth + 1)).collect());
            }
            if rng.random_bool(0.05) {
                put(["contains", "not"].choose(rng).unwrap(), json!({"type": "null"}));
            }
            limits(rng, schema, "minItems", "maxItems", 4);
            if rng.random_bool(0.35) {
                schema.insert("uniqueItems".to_owned(), json!(rng.random_bool(0.9)));
            }
        }
        _ => {
            put("type", json!("object"));
            let listed: Map<String, Value> =
                names(rng).into_iter().map(|name| (name.to_owned(), schema_of(rng, depth + 1))).collect();
            put("properties", Value::Object(listed));
            if rng.random_bool(0.6) {
                put("required", json!(names(rng)));
            }
            if rng.random_bool(0.4) {
                let count = rng.random_range(1..4);
                let patterns: Map<String, Value> = (0..count)
                    .map(|_| ((*PATTERNS.choose(rng).unwrap()).to_owned(), schema_of(rng, depth + 1)))
                    .collect();
                put("patternProperties", Value::Object(patterns));
            }
            if rng.random_bool(0.6) {
                put(
                    "additionalProperties",
                    if rng.random_bool(0.5) { json!(false) } else { schema_of(rng, depth + 1) },
                );
            }
            if rng.random_bool(0.2) {
                let names = [
                    json!({"pattern": "^[a-z_0-9]{1,6}$"}),
                    json!({"maxLength": 3}),
                    json!({"enum": ["a", "x_1", "q"]}),
                ];
                put("propertyNames", names.choose(rng).unwrap().clone());
            }
            if rng.random_bool(0.3) {
                limits(rng, schema, "minProperties", "maxProperties", 3);
            }
        }
    }
}

fn schema_of(rng: &mut ChaCha8Rng, depth: usize) -> Value {
    let mut schema = Map::new();
    match rng.random_range(0..24) {
        0 => return json!(rng.random_bool(0.8)),
        1 => return json!({"$ref": "#"}),
        2 | 3 => return json!({"$ref": *["#/$defs/one", "#/$defs/a~1b", "#here"].choose(rng).unwrap()}),
        4..=6 if depth < 3 => {
            let keyword = *["anyOf", "anyOf", "oneOf", "allOf"].choose(rng).unwrap();
            let branches = (0..rng.random_range(1..4)).map(|_| schema_of(rng, depth + 1)).collect();
            schema.insert(keyword.to_owned(), branches);
            if rng.random_bool(0.3) {
                keywords(rng, depth, &mut schema);
            }
        }
        _ => keywords(rng, depth, &mut schema),
    }
    Value::Object(schema)
}

fn whole_schema(rng: &mut ChaCha8Rng) -> Value {
    let mut schema = schema_of(rng, 0);
    if let Value::Object(keywords) = &mut schema {
        let mut anchored = schema_of(rng, 2);
        if let Value::Object(keywords) = &mut anchored {
            keywords.insert("$anchor".to_owned(), json!("here"));
        } else {
            anchored = json!({"$anchor": "here"});
        }
        let definitions = json!({"one": schema_of(rng, 2), "a/b": schema_of(rng, 2), "anchored": anchored});
        keywords.insert("$defs".to_owned(), definitions);
    }
    schema
}

#[test]
fn every_answer_to_a_random_schema_validates_or_the_schema_is_refused_with_its_place() {
    let words = words();
    let grammars = grammars(&words);
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    let (mut whole, mut closed, mut small, mut refused, mut distinct) = (0, 0, 0, 0, 0);
    for case in 0..SCHEMAS {
        let schema = whole_schema(&mut rng);
        let judge = jsonschema::options().should_validate_formats(true).build(&schema);
        for round in 0..4 {
            let budget = *[1, 6, 25, 80, 200].choose(&mut rng).unwrap() + rng.random_range(0..8);
            match answer(&grammars, &words, &schema, budget, case * 4 + round) {
                Ok((text, reason, usage)) => {
                    let value: Value = serde_json::from_str(&text)
                        .unwrap_or_else(|e| panic!("{e}: {text:?} of {schema} with {budget} tokens"));
                    let judge = judge.as_ref().unwrap_or_else(|e| panic!("{schema} is none: {e}"));
                    let wrong: Vec<String> = judge.iter_errors(&value).map(|e| e.to_string()).collect();
                    assert!(wrong.is_empty(), "{text} of {schema} with {budget} tokens: {wrong:?}");
                    assert!(usage.completion_tokens as usize <= budget);
                    distinct += u32::from(text.contains('[') && repeats::Shapes::of(&schema).is_some());
                    if reason == FinishReason::Stop { whole += 1 } else { closed += 1 }
                }
                Err(EngineError::BudgetTooSmall { needed, given }) => {
                    assert!(given as usize == budget && needed > given);
                    small += 1;
                    answer(&grammars, &words, &schema, needed as usize, case).unwrap();
                }
                Err(EngineError::Schema(message)) => {
                    assert!(message.starts_with('#') && message.contains(": "), "{schema}: {message}");
                    refused += 1;
                    break;
                }
                Err(error) => panic!("{schema}: {error}"),
            }
        }
        if let Ok(text) = instance(&schema) {
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(judge.unwrap().is_valid(&value), "{text} of {schema}");
        }
    }
    assert!(whole > 100 && closed > 100 && small > 30, "{whole} whole, {closed} closed, {small} too small");
    assert!(distinct > 20, "{distinct} with lists of which items may have to differ");
    assert!(refused < SCHEMAS as usize / 3, "{refused} of {SCHEMAS} were refused");
}

/// Number of schemas that are tried.
const SCHEMAS: u64 = 300;

/// Cases that could once be entered but not left.
#[test]
fn nothing_is_offered_that_leads_nowhere() {
    let words = words();
    let grammars = grammars(&words);
    let endless = json!({"type": "object", "properties": {"n": {"$ref": "#/$defs/e"}}, "required": ["n"]});
    for schema in [
        // The pattern matches only the listed name.
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "patternProperties": {"^a$": {"minimum": 3}}, "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "patternProperties": {"^[ab]$": {}}}),
        // A name that can't be written.
        json!({"type": "object", "patternProperties": {"^\\x01$": {}}, "additionalProperties": false}),
        json!({"type": "object", "patternProperties": {"^x": {"type": "string", "pattern": "^\\x01$"}}, "additionalProperties": {"type": "null"}}),
        // Optional, and infinite.
        json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/e"}, "y": {"type": "null"}}, "additionalProperties": false, "$defs": {"e": endless}}),
        json!({"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/e"}, {"const": 1}]}, "$defs": {"e": endless}}),
        json!({"type": "object", "properties": {"x": {"type": "string", "minLength": 60_000}, "y": {"type": "null"}}, "additionalProperties": false}),
        json!({"type": "array", "prefixItems": [{"type": "null"}, false], "items": {"type": "string"}}),
        json!({"anyOf": [{"type": "array", "items": {"$ref": "#"}, "minItems": 1}, {"type": "object", "additionalProperties": false}]}),
        json!({"type": "object", "properties": {"a": false, "b": {"enum": []}, "c": {"allOf": [{"type": "string"}, {"type": "null"}]}}}),
        json!({"type": "object", "propertyNames": {"enum": ["p", "q"]}, "additionalProperties": {"type": "integer"}}),
        json!({"type": "object", "properties": {"p": {}, "long": {}}, "propertyNames": {"maxLength": 1}, "additionalProperties": false}),
    ] {
        for seed in 0..30 {
            let budget = 3 + seed as usize * 4;
            match answer(&grammars, &words, &schema, budget, seed) {
                Ok((text, ..)) => {
                    let value: Value =
                        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?} of {schema}"));
                    assert!(jsonschema::is_valid(&schema, &value), "{text} of {schema}");
                }
                Err(EngineError::BudgetTooSmall { needed, .. }) => assert!(needed < 12, "{schema}: {needed}"),
                Err(error) => panic!("{schema}: {error}"),
            }
        }
    }
}
