//! Tests of schemas without a parser: what is refused and where, and short instances.

use serde_json::{Value, json};

use super::*;

fn refusal(schema: &Value) -> String {
    match compile(schema) {
        Ok(_) => panic!("{schema} was taken"),
        Err(fault) => fault.to_string(),
    }
}

#[test]
fn what_can_not_be_held_to_is_refused_with_its_place() {
    let endless = json!({"type": "object", "properties": {"n": {"$ref": "#/$defs/e"}}, "required": ["n"]});
    for (schema, expected) in [
        (
            json!({"properties": {"a": {"type": "strin"}}}),
            "#/properties/a/type: found \"strin\", expected a type",
        ),
        (json!({"items": {"type": ["null", 5]}}), "#/items/type: found [\"null\",5]"),
        (
            json!({"properties": {"a/b": {"not": {"type": "null"}}}}),
            "#/properties/a~1b/not: not can't be enforced",
        ),
        (
            json!({"items": {"uniqueItems": "yes"}}),
            "#/items/uniqueItems: found \"yes\", expected true or false",
        ),
        (json!({"if": {}, "then": {}}), "#/if: "),
        (json!({"contains": {}}), "#/contains: "),
        (json!({"type": "string", "pattern": "("}), "#/pattern: the regular expression can't be enforced: "),
        (
            json!({"type": "string", "pattern": "(?=a)b"}),
            "#/pattern: the regular expression can't be enforced: ",
        ),
        (
            json!({"patternProperties": {"[": {}}}),
            "#/patternProperties/[: the regular expression can't be enforced: ",
        ),
        (
            json!({"type": "string", "format": "colour"}),
            "#/format: the format \"colour\" can't be enforced; expected one of",
        ),
        (json!({"type": "string", "minLength": -1}), "#/minLength: found -1, expected a whole number"),
        (json!({"type": "string", "maxLength": "9"}), "#/maxLength: found \"9\", expected a whole number"),
        (json!({"type": "integer", "minimum": "9"}), "#/minimum: found \"9\", expected a number"),
        (json!({"type": "integer", "multipleOf": 0}), "#/multipleOf: found 0, expected a number above 0"),
        (json!({"properties": []}), "#/properties: found [], expected an object of schemas"),
        (json!({"properties": {"a": 1}}), "#/properties/a: found 1, expected a schema"),
        (json!({"anyOf": {}}), "#/anyOf: found {}, expected a list of schemas"),
        (json!({"required": true}), "#/required: found true, expected a list of names"),
        (json!({"enum": "a"}), "#/enum: found \"a\", expected a list of values"),
        (json!({"$ref": 5}), "#/$ref: found 5, expected a text"),
        (json!({"$ref": "#/nowhere"}), "#/$ref: \"#/nowhere\" leads nowhere"),
        (json!(false), "#: no value validates"),
        (json!({"enum": []}), "#: no value validates"),
        (json!({"type": []}), "#: no value validates"),
        (json!({"anyOf": []}), "#: no value validates"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "#: no value validates"),
        (json!({"type": "string", "const": 5}), "#: no value validates"),
        (json!({"type": "string", "pattern": "^a$", "minLength": 2}), "#: no value validates"),
        // If something required is impossible, the innermost place is reported.
        (
            json!({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}),
            "#/properties/a: no value",
        ),
        (json!({"type": "array", "items": false, "minItems": 1}), "#/items: no value"),
        (
            json!({"type": "object", "required": ["x"], "additionalProperties": false}),
            "#/additionalProperties: no value",
        ),
        (json!({"type": "string", "minLength": 100_000}), "#: the shortest value has at least 100002 bytes"),
        (
            json!({"type": "object", "maxProperties": 1, "required": ["a", "b"]}),
            "#: more properties are required",
        ),
        (
            json!({"type": "string", "minLength": u64::MAX}),
            "#: the shortest value has at least 18446744073709551615 bytes",
        ),
        (
            json!({"type": "string", "minLength": u64::MAX, "pattern": "a"}),
            "#: the shortest value has at least",
        ),
        (
            json!({"type": "array", "items": {"type": "null"}, "minItems": 1_000_000_000}),
            "#: the shortest value has at least",
        ),
        (
            json!({"type": "array", "items": {"type": "null"}, "minItems": u64::MAX}),
            "#: the shortest value has at least",
        ),
        (json!({"type": "object", "minProperties": u64::MAX}), "#: minProperties is 18446744073709551615"),
        (json!({"type": "number", "minimum": 1e308, "maximum": -1e308}), "#: no value validates"),
        (json!({"type": "object", "minProperties": 3}), "#: minProperties is 3, but only 0 names are listed"),
        // Schemas that lead back to themselves without a value in between.
        (json!({"$ref": "#"}), "it refers back to #"),
        (json!({"allOf": [{"$ref": "#"}]}), "it refers back to #"),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            "#/$defs/b: it refers back to #/$defs/a endlessly",
        ),
        (json!({"const": 1, "not": false, "allOf": [{"$ref": "#"}]}), "it refers back to #"),
        (
            json!({"type": "object", "propertyNames": {"$ref": "#/$defs/n"}, "required": ["a"], "$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}]}}}),
            "#/$defs/n: it refers back to itself",
        ),
        (json!({"$ref": "#/$defs/e", "$defs": {"e": endless}}), "#/$defs/e: it requires itself recursively"),
        (
            json!({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}),
            "#/oneOf: one value could satisfy branches 0 and 1",
        ),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "#/oneOf: one value could satisfy"),
    ] {
        let found = refusal(&schema);
        assert!(found.contains(expected), "{schema}: {found}\nexpected {expected}");
    }
}

#[test]
fn short_instances_validate() {
    let tree = json!({"type": "object", "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                      "required": ["v", "next"], "additionalProperties": false});
    for schema in [
        json!({"type": "object", "properties": {"a": {"type": "string", "minLength": 3}, "b": {"$ref": "#/$defs/n"}},
               "required": ["a", "b"], "additionalProperties": false, "$defs": {"n": {"type": "integer", "minimum": 7}}}),
        json!({"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2}),
        json!({"anyOf": [{"type": "null"}, {"type": "string"}]}),
        json!({"type": ["number", "null"]}),
        json!({"const": {"type": "number", "$ref": "#/nowhere"}}),
        json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
        json!({"type": "object", "minProperties": 1, "propertyNames": {"pattern": "^x_"}}),
        json!({"type": "object", "required": ["z"], "patternProperties": {"^z": {"type": "boolean"}}}),
        // Alternatives whose distinction depends recursively on the same distinction.
        json!({"oneOf": [{"type": "null"}, {"type": "object", "properties": {"a": {"$ref": "#"}, "k": {"const": 1}}, "required": ["a", "k"]},
                         {"type": "object", "properties": {"a": {"$ref": "#"}, "k": {"const": 2}}, "required": ["a", "k"]}]}),
        json!({"oneOf": [{"properties": {"k": {"const": "a"}}, "required": ["k"]}, {"properties": {"k": {"const": "b"}}, "required": ["k"]}],
               "type": "object"}),
        tree,
        json!({"type": "string", "maxLength": u64::MAX, "pattern": "(a+)+$"}),
        json!({"type": "array", "maxItems": u64::MAX}),
        json!({"type": "object", "maxProperties": u64::MAX, "minProperties": 1}),
        json!({"type": "number", "exclusiveMinimum": -f64::MAX, "exclusiveMaximum": f64::MAX}),
        json!(true),
        json!({}),
    ] {
        let text = instance(&schema).unwrap_or_else(|e| panic!("{schema}: {e}"));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(jsonschema::is_valid(&schema, &value), "{value} against {schema}");
    }
}

#[test]
fn plain_schemas_have_a_bound_and_others_none() {
    let bound = |schema: Value| compile(&schema).unwrap().bound;
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array",
        "items": {"type": "object", "properties": {"c": {"type": "number"}}, "additionalProperties": false}}},
        "required": ["a", "b"], "additionalProperties": false});
    let plain = bound(schema).unwrap();
    assert!((r#"{"a":"","b":[]}"#.len()..80).contains(&plain), "{plain}");
    assert!(bound(json!({"type": "integer", "minimum": 1e30})).unwrap() > 31, "all digits of the limit");
    for unbounded in [
        json!({"type": "string", "minLength": 9}),
        json!({"type": "object", "properties": {}}),
        json!({"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "null"}]}),
        json!({"type": "array"}),
        json!(true),
    ] {
        assert_eq!(bound(unbounded.clone()), None, "{unbounded}");
    }
}

#[test]
fn closing_opens_no_more_levels_than_are_needed() {
    let levels = |schema: Value| compile(&schema).unwrap().levels;
    assert_eq!(levels(json!({"type": "object"})), 1);
    assert_eq!(levels(json!({"type": "string"})), 0);
    let lists = json!({"anyOf": [{"type": "array", "items": {"$ref": "#"}, "minItems": 1}, {"type": "object", "additionalProperties": false}]});
    assert_eq!(levels(lists), 1);
}
