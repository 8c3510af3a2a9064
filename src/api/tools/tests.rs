//! Tests what tools add to an answer's constraint, and what is wrong with them.

use serde_json::{Value, json};

use super::*;
use crate::api::request::tests::GREEDY;
use crate::text::conversation::Conversation;
use crate::text::fields::take;

fn constrained(fields: Value) -> Result<AnswerOptions, String> {
    let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
    let body = body.as_object_mut().unwrap();
    body.extend(fields.as_object().unwrap().clone());
    let written = take(body).map_err(|error| error.to_string())?;
    let mut options = AnswerOptions::new(written, &GREEDY).map_err(|error| error.to_string())?;
    let conversation = Conversation::take(body).map_err(|error| error.to_string())?;
    constrain(&mut options, &conversation.tools).map_err(|error| error.to_string())?;
    Ok(options)
}

fn tool(name: &str, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "Looks.", "parameters": parameters}})
}

#[test]
fn a_promised_call_is_a_schema_whose_references_lead_home() {
    let pointed = json!({"properties": {"p": {"$ref": "#/$defs/p"}}, "$defs": {"p": {"type": "integer"}}});
    let tools = json!([tool("f", &json!({"type": "object"})), tool("g", &pointed)]);
    let schema = |choice: Value| {
        let options = constrained(json!({"tools": tools, "tool_choice": choice})).unwrap();
        assert_eq!(options.constraint_field, "tools");
        let Some(Constraint::JsonSchema(schema)) = options.generate.constraint else { panic!("no schema") };
        schema
    };
    let any = schema(json!("required"));
    assert!(jsonschema::is_valid(&any, &json!({"name": "f", "arguments": {}})));
    assert!(jsonschema::is_valid(&any, &json!({"name": "g", "arguments": {"p": 5}})));
    assert!(!jsonschema::is_valid(&any, &json!({"name": "g", "arguments": {"p": "5"}})));
    assert!(!jsonschema::is_valid(&any, &json!({"name": "h", "arguments": {}})));
    let named = schema(json!({"type": "function", "function": {"name": "g"}}));
    assert!(jsonschema::is_valid(&named, &json!({"name": "g", "arguments": {"p": 5}})));
    assert!(!jsonschema::is_valid(&named, &json!({"name": "g", "arguments": {"p": "5"}})));
    assert!(!jsonschema::is_valid(&named, &json!({"name": "f", "arguments": {}})));
}

#[test]
fn references_are_led_home_where_they_are_some_and_data_stays_as_it_is() {
    let data = json!({"$ref": "#/nowhere", "type": "number"});
    let schema = json!({
        "type": "object",
        "properties": {
            "$ref": {"type": "string"}, "default": {"$ref": "#/$defs/a~1b"}, "q": {"$ref": "#here"}, "k": {"const": data},
        },
        "examples": [data], "$defs": {"a/b": {"type": "integer"}, "h": {"$anchor": "here", "type": "string"}},
    });
    let tools = json!([tool("f", &json!({"type": "object"})), tool("g", &schema)]);
    let options = constrained(json!({"tools": tools, "tool_choice": "required"})).unwrap();
    let Some(Constraint::JsonSchema(any)) = options.generate.constraint else { panic!("no schema") };
    let call = |arguments: Value| jsonschema::is_valid(&any, &json!({"name": "g", "arguments": arguments}));
    assert!(call(json!({"$ref": "x", "default": 5, "q": "x", "k": data})));
    assert!(!call(json!({"$ref": 5})) && !call(json!({"default": "x"})) && !call(json!({"q": 5})));
    assert!(!call(json!({"k": {"$ref": "#/anyOf/1/properties/arguments/nowhere", "type": "number"}})));
    let mut embedded = any["anyOf"][1]["properties"]["arguments"].clone();
    embedded.as_object_mut().unwrap().shift_remove("$id");
    assert_eq!(embedded, schema, "nothing but a name was added");
}

#[test]
fn an_answer_in_a_shape_may_be_a_call_instead() {
    let answer = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"],
                        "$defs": {"n": {"type": "integer"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": answer}});
    let tools = json!([tool("f", &json!({"type": "object"}))]);
    let options = constrained(json!({"tools": tools, "response_format": format})).unwrap();
    let Some(Constraint::JsonSchema(schema)) = options.generate.constraint else { panic!("no schema") };
    assert!(jsonschema::is_valid(&schema, &json!({"a": 5})));
    assert!(jsonschema::is_valid(&schema, &json!({"name": "f", "arguments": {}})));
    assert!(!jsonschema::is_valid(&schema, &json!({"a": "5"})));
}

#[test]
fn mistakes_name_their_field() {
    let f = tool("f", &json!({}));
    for (fields, start) in [
        (json!({"messages": []}), "messages: is empty"),
        (json!({"messages": "hi"}), "messages: invalid type"),
        (json!({"tools": {}}), "tools: invalid type"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type: unknown variant `retrieval`"),
        (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name: is missing"),
        (json!({"tools": [f, tool("a b", &json!({}))]}), "tools[1].function.name: found \"a b\""),
        (json!({"tools": [tool("f", &json!("x"))]}), "tools[0].function.parameters: invalid type"),
        (json!({"tools": [f], "tool_choice": "maybe"}), "tool_choice: found \"maybe\""),
        (json!({"tool_choice": "required"}), "tool_choice: promises a call, but tools has no entry"),
        (
            json!({"tools": [f], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice.function.name: no tool is named \"g\"",
        ),
        (json!({"parallel_tool_calls": "yes"}), "parallel_tool_calls: invalid type"),
        (
            json!({"tools": [f], "tool_choice": "required", "response_format": {"type": "json_object"}}),
            "tool_choice: can't be combined with response_format",
        ),
        (json!({"tools": [f], "regex": "a"}), "tools: can't be combined with regex"),
        (
            json!({"tools": [f], "tool_choice": "required", "ignore_eos": true}),
            "tool_choice: can't be combined with ignore_eos",
        ),
    ] {
        let error = constrained(fields.clone()).unwrap_err();
        assert!(error.starts_with(start), "{fields}: {error}");
    }
}
