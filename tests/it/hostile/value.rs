//! Generates JSON from a schema: valid, nearly valid, and absurd.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// Maximum nesting of valid values.
const DEPTH: usize = 6;

/// A value that the schema allows, often at the edge of what it allows.
pub fn right(document: &Value, schema: &Value, random: &mut ChaCha8Rng, depth: usize) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        if reference.ends_with("/JsonSchema") {
            return json_schema(random);
        }
        return right(document, &document.pointer(&reference[1..]).unwrap().clone(), random, depth);
    }
    if let Some(parts) = schema["allOf"].as_array() {
        let mut whole = Map::new();
        for part in parts {
            if let Value::Object(fields) = right(document, part, random, depth) {
                whole.extend(fields);
            }
        }
        return Value::Object(whole);
    }
    if let Some(one) = schema["anyOf"].as_array().and_then(|branches| branches.choose(random)) {
        return right(document, one, random, depth);
    }
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    if let Some(value) = schema["enum"].as_array().and_then(|values| values.choose(random)) {
        return value.clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.choose(random).and_then(Value::as_str).unwrap_or("null"),
        Value::String(kind) => kind,
        _ => "null",
    };
    match kind {
        "object" => object(document, schema, random, depth),
        "array" if schema["prefixItems"].is_array() => {
            let items = schema["prefixItems"].as_array().into_iter().flatten();
            items.map(|item| right(document, item, random, depth + 1)).collect()
        }
        "array" => {
            let least = schema["minItems"].as_u64().unwrap_or(0) as usize;
            let count = if depth > DEPTH { least } else { least + random.random_range(0..3) };
            (0..count).map(|_| right(document, &schema["items"], random, depth + 1)).collect()
        }
        "string" => json!(text(random, schema["minLength"].as_u64().unwrap_or(0) as usize)),
        "integer" => integer(schema, random),
        "number" => {
            let (least, most) =
                (schema["minimum"].as_f64().unwrap_or(-1e9), schema["maximum"].as_f64().unwrap_or(1e9));
            json!(
                *[least, most, f64::midpoint(least, most), random.random_range(least..=most)]
                    .choose(random)
                    .unwrap()
            )
        }
        "boolean" => json!(random.random::<bool>()),
        _ => Value::Null,
    }
}

fn object(document: &Value, schema: &Value, random: &mut ChaCha8Rng, depth: usize) -> Value {
    let none = Map::new();
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let mut object = Map::new();
    for (name, property) in schema["properties"].as_object().unwrap_or(&none) {
        if required.contains(&json!(name)) || (depth <= DEPTH && random.random_bool(0.3)) {
            object.insert(name.clone(), right(document, property, random, depth + 1));
        }
    }
    Value::Object(object)
}

fn integer(schema: &Value, random: &mut ChaCha8Rng) -> Value {
    let least = schema["minimum"].as_i64().unwrap_or(i64::MIN);
    let most = schema["maximum"].as_i64().unwrap_or(i64::MAX);
    json!(
        *[least, most, least.saturating_add(1).min(most), random.random_range(least..=most)]
            .choose(random)
            .unwrap()
    )
}

/// Text with something unusual in it.
pub fn text(random: &mut ChaCha8Rng, least: usize) -> String {
    const ODD: [&str; 14] = [
        "x",
        "",
        "a few plain words",
        "\u{0}",
        "\u{feff}",
        "<|user|>",
        "<think>",
        "</think>\u{e000}",
        "\"}\\",
        "{% raw %}{{ 7*7 }}",
        "日本語 🦀",
        "\u{202e}",
        "e\u{301}\u{301}\u{301}\u{301}",
        "\r\n\r\nHTTP/1.1 200 OK",
    ];
    let mut text = (*ODD.choose(random).unwrap()).to_owned();
    if random.random_ratio(1, 40) {
        text = text.repeat(random.random_range(100..5_000));
    }
    while text.chars().count() < least {
        text.push('x');
    }
    text
}

/// A schema for an answer, mostly a troublesome one.
fn json_schema(random: &mut ChaCha8Rng) -> Value {
    let deep = (0..random.random_range(1..100))
        .fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner, "minItems": 1}));
    let choices = [
        json!({"type": "object"}),
        json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": false}),
        json!({"$ref": "#"}),
        json!({"$ref": "https://example.org/schema"}),
        json!({"$ref": "#/nowhere"}),
        json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        json!({"type": "string", "minLength": 10, "maxLength": 2}),
        json!({"type": "string", "minLength": u64::MAX}),
        json!({"type": "array", "items": {"type": "null"}, "minItems": 1_000_000_000}),
        json!({"type": "string", "pattern": "(a+)+$"}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "string", "format": "date-time"}),
        json!({"type": "number", "minimum": 1e308, "maximum": -1e308}),
        json!({"type": "integer", "multipleOf": 0}),
        json!({"enum": []}),
        json!({"const": {"a": [1, null, "x"]}}),
        json!({"not": {}}),
        json!({"allOf": [{"type": "string"}, {"type": "number"}]}),
        json!({"anyOf": []}),
        json!({"type": "robot"}),
        json!({"type": ["string", 7]}),
        json!({"properties": 5}),
        json!({"required": "a"}),
        json!(true),
        json!(false),
        json!({}),
        deep,
    ];
    choices.choose(random).unwrap().clone()
}

/// A value that hardly any field expects.
pub fn absurd(random: &mut ChaCha8Rng) -> Value {
    let choices = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e308),
        json!(-0.0),
        json!(1e-320),
        json!(0.1),
        json!("NaN"),
        json!(""),
        json!(text(random, 0)),
        json!("9".repeat(400)),
        json!([]),
        json!([[]]),
        json!({}),
        json!({"": ""}),
        json!({"type": "text"}),
        json!([null, 1, "x", {}, []]),
        (0..random.random_range(1..200)).fold(json!(1), |inner, _| json!([inner])),
        json!(vec![0; random.random_range(0..3_000)]),
    ];
    choices.choose(random).unwrap().clone()
}

/// Changes one place in a value.
pub fn spoil(value: &mut Value, random: &mut ChaCha8Rng) {
    let deeper = random.random_bool(0.7);
    match value {
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let names: Vec<String> = fields.keys().cloned().collect();
            let name = names.choose(random).unwrap();
            match random.random_range(0..10) {
                0 => drop(fields.shift_remove(name)),
                1 => {
                    let taken = fields[name].clone();
                    fields.insert(name.to_uppercase(), taken);
                }
                2 => drop(fields.insert(unheard(random), absurd(random))),
                _ => spoil(&mut fields[name], random),
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let index = random.random_range(0..items.len());
            spoil(&mut items[index], random);
        }
        other => *other = absurd(random),
    }
}

/// A field that is in no schema, or only in those of other servers.
fn unheard(random: &mut ChaCha8Rng) -> String {
    const NAMES: [&str; 13] = [
        "n",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "grammar",
        "json_schema",
        "tool_choice",
        "modalities",
        "__proto__",
        "presence_penalty",
        "ignore_eos",
        "samplers",
        "functions",
    ];
    if random.random_bool(0.8) { (*NAMES.choose(random).unwrap()).to_owned() } else { text(random, 0) }
}
