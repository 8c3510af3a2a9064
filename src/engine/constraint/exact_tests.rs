//! Tests what a model may write, byte by byte: accepted where the answer validates, refused where
//! it doesn't.

use serde_json::{Value, json};

use super::tests::{answer, begin, grammars, words};
use super::*;
use crate::engine::Constraint;
use crate::engine::vocabulary::Vocabulary;

/// Whether this text is accepted as a whole answer.
fn takes(grammars: &Grammars, words: &Vocabulary, schema: &Value, text: &str) -> bool {
    let session = begin(grammars, &Constraint::JsonSchema(schema.clone()));
    let mut session = session.unwrap_or_else(|error| panic!("{schema}: {error}"));
    let mut rest = text.as_bytes();
    loop {
        for token in session.forced().unwrap() {
            let Some(after) = rest.strip_prefix(words.bytes(token)) else { return false };
            rest = after;
        }
        if session.repeat().is_some() {
            return false;
        }
        let Some((&byte, after)) = rest.split_first() else {
            return session.ended().unwrap() || session.closing().unwrap().is_empty();
        };
        if session.ended().unwrap() || !session.mask().unwrap().is_allowed(u32::from(byte)) {
            return false;
        }
        session.accept(u32::from(byte)).unwrap();
        rest = after;
    }
}

fn check(cases: Vec<(Value, Vec<&str>, Vec<&str>)>) {
    let words = words();
    let grammars = grammars(&words);
    for (schema, right, wrong) in cases {
        for text in right {
            assert!(takes(&grammars, &words, &schema, text), "{text} was not taken by {schema}");
        }
        for text in wrong {
            assert!(!takes(&grammars, &words, &schema, text), "{text} was taken by {schema}");
        }
    }
}

#[test]
fn whole_numbers_are_exact_up_to_64_bits() {
    check(vec![
        (
            json!({"type": "integer"}),
            vec![
                "0",
                "7",
                "-1",
                "4111111111111111",
                "9007199254740993",
                "-9007199254740993",
                "9223372036854775807",
                "-9223372036854775808",
                "18446744073709551615",
                "10000000000000000000",
            ],
            vec![
                "-0",
                "01",
                "1.0",
                "1e3",
                "18446744073709551616",
                "-9223372036854775809",
                "99999999999999999999999",
                "-",
                "",
            ],
        ),
        (
            json!({"type": "integer", "minimum": 9_007_199_254_740_993_i64}),
            vec!["9007199254740993", "9007199254740994", "18446744073709551615"],
            vec!["9007199254740992", "9", "-1"],
        ),
        (
            json!({"type": "integer", "exclusiveMinimum": 18_446_744_073_709_551_614_u64}),
            vec!["18446744073709551615"],
            vec!["18446744073709551614", "1844674407370955161"],
        ),
        (
            json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MIN}),
            vec!["-9223372036854775808"],
            vec!["-9223372036854775807", "0"],
        ),
        (
            json!({"type": "integer", "exclusiveMaximum": i64::MAX}),
            vec!["9223372036854775806", "-5"],
            vec!["9223372036854775807"],
        ),
        (json!({"type": "integer", "minimum": 1.5, "maximum": 3.5}), vec!["2", "3"], vec!["1", "4", "0"]),
        (
            json!({"type": "integer", "minimum": -3.5, "maximum": -1.5}),
            vec!["-2", "-3"],
            vec!["-1", "-4", "0", "2"],
        ),
        (
            json!({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 12}),
            vec!["-2", "0", "9", "10", "11"],
            vec!["-3", "12", "13"],
        ),
        (json!({"type": "integer", "minimum": 0}), vec!["0", "18446744073709551615"], vec!["-1", "-0"]),
        (
            json!({"type": "integer", "minimum": 1e20}),
            vec!["100000000000000000000", "900000000000000000000"],
            vec!["99999999999999999999"],
        ),
        (
            json!({"type": "integer", "minimum": 0, "exclusiveMinimum": true, "maximum": 9, "exclusiveMaximum": false}),
            vec!["1", "9"],
            vec!["0", "10"],
        ),
        (
            json!({"type": "integer", "multipleOf": 7}),
            vec!["0", "7", "-14", "4111111111111109"],
            vec!["1", "-13", "4111111111111111"],
        ),
        (
            json!({"type": "integer", "multipleOf": 1_000_000_000_000_i64}),
            vec!["0", "-3000000000000"],
            vec!["1", "300000000000"],
        ),
        (json!({"type": ["integer", "number"]}), vec!["1", "1.5"], vec![]),
        (
            json!({"allOf": [{"type": "number"}, {"type": "integer", "maximum": 100}], "minimum": 98.5}),
            vec!["99", "100"],
            vec!["98", "99.5"],
        ),
    ]);
}

#[test]
fn numbers_keep_their_digits_and_only_exponents_are_bounded() {
    let (nines, too_many) = ("9".repeat(60), "9".repeat(150));
    let long = format!("0.{}", "3".repeat(90));
    let endless = format!("0.{}", "3".repeat(150));
    check(vec![
        (
            json!({"type": "number"}),
            vec![
                "0",
                "-0",
                "-0.0",
                "0.1",
                "-0.1",
                "3.141592653589793",
                "0.30000000000000004",
                "1.7976931348623157e308",
                "-1.7976931348623157E+308",
                "5e-324",
                "2.2250738585072014e-308",
                "1e-05",
                "1E+22",
                "6.02214076e23",
                "12.5e3",
                "4111111111111111",
                "4111111111111111.25",
                "18446744073709551615",
                "123456789012345678901234567890",
                &nines,
                &long,
                "0.1000000000000000055511151231257827021181583404541015625",
            ],
            vec![
                "1e999",
                "1e309",
                "1.8e308",
                "-1e400",
                "1e0000000001",
                &too_many,
                &endless,
                ".5",
                "+1",
                "1.",
                "1e",
                "01",
                "-",
                "0x10",
                "NaN",
                "Infinity",
            ],
        ),
        (
            json!({"type": "number", "minimum": 0, "maximum": 1}),
            vec!["0", "1", "0.5", "1.0", "1.000", "0.0", "1e-7", "5E-1", "9.99e-1", "0.00000000000000000001"],
            vec!["1.1", "-0.1", "-0.5", "1.0001", "2", "1e1", "1.5e0", "10", "1.00000000000000000000000001"],
        ),
        (
            json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
            vec!["0.0001", "0.999", "1e-300", "0.9999999999999999"],
            // The last one is read as 1.
            vec!["0", "1", "0.0", "1.0", "-0", "0.99999999999999999999999999"],
        ),
        (
            json!({"type": "number", "minimum": -0.25, "maximum": 12.75}),
            vec!["-0.25", "-0.2", "-0", "0", "12.75", "12.7499", "12.750", "9", "1.2e1", "-2.5e-1", "3.0"],
            vec!["-0.26", "12.76", "12.7501", "13", "-1", "1.3e1", "-2.6e-1"],
        ),
        (
            json!({"type": "number", "minimum": 0.1, "maximum": 0.125}),
            vec!["0.1", "0.11", "0.125", "0.1250", "1.1e-1"],
            vec!["0.09", "0.126", "0.0999999", "0"],
        ),
        (
            json!({"type": "number", "minimum": 1e300}),
            vec!["1e300", "1.5e+300", "1.7e308"],
            vec!["1e299", "5", "9.9e299", "1e309"],
        ),
        (
            json!({"type": "number", "exclusiveMaximum": -1e300}),
            vec!["-1.1e300", "-1e301"],
            vec!["-1e300", "-1", "1e301"],
        ),
        (
            json!({"type": "number", "minimum": 9_007_199_254_740_993_i64}),
            vec!["9007199254740993", "9007199254740994.5", "1e17"],
            // Read as a double, the last one is below the minimum.
            vec!["9007199254740992", "9007199254740992.9", "9007199254740993.1"],
        ),
        (
            json!({"type": "number", "maximum": -5}),
            vec!["-5", "-5.0", "-6.5", "-1e9"],
            vec!["-4.9", "0", "5"],
        ),
        (
            json!({"type": "number", "multipleOf": 0.01}),
            vec!["1.25", "1.2", "3", "-0.07", "0"],
            vec!["1.255", "1e1"],
        ),
        (json!({"type": "number", "multipleOf": 2.5}), vec!["2.5", "5", "7.5", "-10.0"], vec!["2", "2.6"]),
    ]);
}

#[test]
fn listed_values_come_out_as_they_were_written() {
    let (words, texts) = (
        words(),
        [
            "",
            "plain",
            "\u{0}",
            "a\u{1}b",
            "\u{8}\u{c}\n\r\t",
            "\u{1f}\u{7f}\u{80}\u{9f}",
            "\u{2028}\u{2029}\u{feff}",
            "\"\\/'",
            "𝄞 \u{10ffff}",
            "é e\u{301} \u{200d}",
            "</tool_call>",
            "{\"type\":\"number\"}",
            "\\u0041",
            "$ref",
        ],
    );
    let grammars = grammars(&words);
    for text in texts {
        for schema in [
            json!({"const": text}),
            json!({"enum": [text]}),
            json!({"type": "string", "enum": [text, "other"]}),
            json!({"type": "object", "properties": {(text): {"const": text}}, "required": [text], "additionalProperties": false}),
            json!({"type": "object", "required": [text], "additionalProperties": {"type": "integer"}, "maxProperties": 1}),
            json!({"type": "array", "items": {"const": {(text): [text]}}, "minItems": 1, "maxItems": 2}),
            json!({"anyOf": [{"const": text}, {"type": "string", "maxLength": 3}]}),
        ] {
            for seed in 0..4 {
                let (said, _, _) =
                    answer(&grammars, &words, &schema, 200, seed).unwrap_or_else(|e| panic!("{schema}: {e}"));
                let value: Value =
                    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{schema}: {said}: {e}"));
                assert!(jsonschema::is_valid(&schema, &value), "{said} of {schema}");
            }
        }
        assert!(takes(&grammars, &words, &json!({"const": text}), &json!(text).to_string()), "{text:?}");
    }
    let numbers = r"[18446744073709551615, -9223372036854775808, 9007199254740993, 1.1, 0.1, 1e22, -0.0, 1.0, 5e-324, 1.7976931348623157e308]";
    let numbers: Vec<Value> = serde_json::from_str(numbers).unwrap();
    for number in &numbers {
        let schema = json!({"enum": numbers});
        assert!(takes(&grammars, &words, &schema, &number.to_string()), "{number}");
        let (said, _, _) = answer(&grammars, &words, &json!({"const": number}), 40, 1).unwrap();
        assert_eq!(said, number.to_string());
    }
    let data = json!({"const": null, "properties": {"a": {"type": "number"}}, "$ref": "#/nowhere", "enum": [1, {"minimum": 2}]});
    for schema in [
        json!({"const": data}),
        json!({"enum": [data]}),
        json!({"allOf": [{"const": data}], "default": {"$ref": "x"}}),
    ] {
        let (said, _, _) = answer(&grammars, &words, &schema, 200, 1).unwrap();
        assert_eq!(said, data.to_string());
    }
}

#[test]
fn items_differ_wherever_a_schema_wants_it() {
    let numbers = json!({"type": "array", "uniqueItems": true, "items": {"type": "number"}});
    check(vec![
        (
            numbers.clone(),
            vec!["[]", "[1]", "[1,2,-1,1.5]", "[9007199254740993,9007199254740992]"],
            vec!["[1,1]", "[1,2,1.0]", "[0,-0.0]", "[10,1e1]", "[0.1,0.10]", "[0.1,0.1000000000000000055]"],
        ),
        (json!({"type": "array", "uniqueItems": false}), vec!["[1,1]"], vec![]),
        (
            json!({"enum": [[1, 1.0], [1, 2], ["a", ["a"]], "x"], "uniqueItems": true}),
            vec!["[1,2]", "[\"a\",[\"a\"]]", "\"x\""],
            vec!["[1,1.0]"],
        ),
        (
            json!({"type": "object", "properties": {"a": {"$ref": "#here"}, "b": {}}, "additionalProperties": {"$ref": "u:x"},
                   "$defs": {"x": {"$anchor": "here", "uniqueItems": true}, "y": {"$id": "u:x", "items": {"$ref": "#/$defs/z"},
                             "$defs": {"z": {"uniqueItems": true}}}, "z": {"type": "null"}}}),
            vec![r#"{"a":[1,2],"b":[1,1],"c":[1,1]}"#, r#"{"c":[[1,2],[1,2]]}"#],
            vec![r#"{"a":[1,1]}"#, r#"{"c":[[1,1]]}"#],
        ),
        (
            json!({"allOf": [{"type": "array", "items": {"enum": ["a", "A", {"k": 1, "l": [2]}]}}, {"uniqueItems": true}]}),
            vec![r#"["a","A"]"#, r#"[{"k":1,"l":[2]},"a"]"#],
            vec![r#"["a","a"]"#, r#"[{"k":1,"l":[2]},"a",{"k":1,"l":[2]}]"#],
        ),
    ]);
    for least in 0..6 {
        let schema = json!({"type": "object", "properties": {"l": numbers, "o": {"type": "array", "uniqueItems": true, "minItems": least}},
                            "required": ["l", "o"]});
        let value: Value = serde_json::from_str(&instance(&schema).unwrap()).unwrap();
        assert!(jsonschema::is_valid(&schema, &value), "{value}");
    }
    assert!(
        instance(&json!({"type": "array", "items": {"const": 1}, "minItems": 2, "uniqueItems": true}))
            .is_err()
    );
}

#[test]
fn properties_may_be_named_like_keywords() {
    let object = |name: &str, inner: Value| json!({"type": "object", "properties": {(name): inner}, "required": [name], "additionalProperties": false});
    let mut cases = Vec::new();
    for name in [
        "default",
        "properties",
        "enum",
        "const",
        "$ref",
        "items",
        "required",
        "examples",
        "type",
        "$defs",
        "additionalProperties",
        "x-guidance",
    ] {
        let inner = object("type", json!({"type": "integer", "maximum": 5}));
        cases.push((
            object(name, inner),
            format!("{{\"{name}\":{{\"type\":3}}}}"),
            format!("{{\"{name}\":{{\"type\":7}}}}"),
        ));
    }
    check(
        cases
            .iter()
            .map(|(schema, right, wrong)| (schema.clone(), vec![right.as_str()], vec![wrong.as_str()]))
            .collect(),
    );
}

#[test]
fn lengths_count_characters() {
    check(vec![
        (
            json!({"type": "string", "minLength": 2, "maxLength": 3}),
            vec!["\"é𝄞\"", "\"日本語\"", r#""\n\"""#, "\"abc\""],
            vec!["\"é\"", "\"日本語x\"", "\"𝄞\"", "\"\""],
        ),
        (json!({"type": "string", "maxLength": 2.0}), vec!["\"ab\""], vec!["\"abc\""]),
        (
            json!({"enum": ["ab", "abc", "𝄞", "é𝄞"], "minLength": 2, "maxLength": 2}),
            vec!["\"ab\"", "\"é𝄞\""],
            vec!["\"abc\"", "\"𝄞\""],
        ),
    ]);
}

#[test]
fn references_by_pointer_anchor_and_id_are_held_to() {
    let schema = |reference: &str| {
        json!({
            "$id": "https://example.com/root.json",
            "type": "object", "properties": {"a/b": {"$ref": reference}}, "required": ["a/b"], "additionalProperties": false,
            "$defs": {
                "x/y~<z>": {"type": "integer", "maximum": 9}, "named": {"$anchor": "named", "type": "integer", "maximum": 9},
                "own": {"$id": "own.json", "$ref": "#/$defs/deep", "$defs": {"deep": {"type": "integer", "maximum": 9}}},
                "list": {"anyOf": [{"type": "string"}, {"type": "integer", "maximum": 9}]},
            },
            "definitions": {"old": {"type": "integer", "maximum": 9}},
        })
    };
    let references = [
        "#/$defs/x~1y~0%3Cz%3E",
        "#named",
        "own.json",
        "https://example.com/own.json",
        "own.json#/$defs/deep",
        "#/definitions/old",
        "#/$defs/list/anyOf/1",
        "#/$defs/named",
        "root.json#named",
    ];
    check(
        references
            .iter()
            .map(|reference| (schema(reference), vec!["{\"a/b\":7}"], vec!["{\"a/b\":70}", "{\"a/b\":\"\"}"]))
            .collect(),
    );
    let recursive =
        json!({"type": "object", "properties": {"child": {"$ref": "#/properties/child/anyOf/0"}}});
    let words = words();
    let error = begin(&grammars(&words), &Constraint::JsonSchema(recursive)).unwrap_err().to_string();
    assert!(
        error.contains("#/properties/child/$ref: \"#/properties/child/anyOf/0\" leads nowhere"),
        "{error}"
    );
}

#[test]
fn keywords_for_other_types_and_boolean_schemas_mean_what_the_standard_says() {
    check(vec![
        (json!({"const": null}), vec!["null"], vec!["0"]),
        (json!({"type": ["null", "string"], "maxLength": 1}), vec!["null", "\"a\""], vec!["1", "\"ab\""]),
        (
            json!({"type": "object", "properties": {"a": true, "b": false}}),
            vec!["{}", "{\"a\":[1]}", "{\"c\":1}"],
            vec!["{\"b\":1}"],
        ),
        (json!({"type": "string", "nullable": true}), vec!["\"\""], vec!["null"]),
        (
            json!({"items": {"type": "integer"}, "type": "array", "prefixItems": [{"type": "string"}]}),
            vec!["[]", "[\"a\",1,2]"],
            vec!["[1]", "[\"a\",\"b\"]"],
        ),
        (
            json!({"items": [{"type": "string"}], "type": "array", "additionalItems": false}),
            vec!["[]", "[\"a\"]"],
            vec!["[\"a\",1]", "[1]"],
        ),
        (
            json!({"minItems": 2, "maxItems": 3, "items": {"type": "integer"}, "type": "array"}),
            vec!["[1,2]", "[1,2,3]"],
            vec!["[1]", "[1,2,3,4]"],
        ),
        (
            json!({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2, "maxProperties": 2, "additionalProperties": false}),
            vec!["{\"a\":1,\"c\":2}", "{\"b\":1,\"c\":2}"],
            vec!["{\"a\":1}", "{\"a\":1,\"b\":1,\"c\":1}", "{}"],
        ),
        (
            json!({"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"maximum": 5}}, "additionalProperties": false}),
            vec!["{\"a\":9}", "{\"ab\":5}", "{\"xb\":3,\"a\":1}", "{\"xb\":\"s\"}"],
            vec!["{\"ab\":9}", "{\"x\":1}", "{\"ab\":\"s\"}"],
        ),
        (
            json!({"oneOf": [{"const": "x"}, {"enum": ["x", "y"]}, {"type": "integer"}]}),
            vec!["\"y\"", "5"],
            vec!["\"x\""],
        ),
        (
            json!({"allOf": [{"properties": {"a": {"minimum": 3}}}, {"properties": {"a": {"type": "integer"}}, "required": ["a"]}], "type": "object", "maxProperties": 1}),
            vec!["{\"a\":3}"],
            vec!["{\"a\":2}", "{}", "{\"a\":3.5}"],
        ),
    ]);
}
