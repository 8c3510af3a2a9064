//! Tests conversations: what the template gets, and what a forced call adds.

use serde_json::{Value, json};

use super::*;
use crate::api::request::Endpoint;
use crate::config::SamplingDefaults;

const GREEDY: SamplingDefaults = SamplingDefaults {
    temperature: 0.0,
    top_p: 1.0,
    top_k: 0,
    min_p: 0.0,
    seed: None,
    thinking: false,
    task_limits: true,
};

fn body(fields: &Value) -> JsonBody {
    let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    JsonBody(body)
}

fn parse(fields: Value) -> Result<Conversation, String> {
    Conversation::parse(&body(&fields)).map_err(|error| error.to_string())
}

fn constrained(fields: Value) -> Result<Manner, String> {
    let body = body(&fields);
    let mut manner = Manner::parse(&body, Endpoint::Chat, &GREEDY).map_err(|error| error.to_string())?;
    let conversation = Conversation::parse(&body).map_err(|error| error.to_string())?;
    conversation.constrain(&mut manner).map_err(|error| error.to_string())?;
    Ok(manner)
}

fn tool(name: &str, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "Looks.", "parameters": parameters}})
}

fn text(prompt: Prompt) -> String {
    prompt.into_iter().map(|segment| segment.text).collect()
}

#[test]
fn effort_decides_about_thinking_and_the_templates_own_word_wins() {
    let template = ChatTemplate::new("{{ enable_thinking }} {{ reasoning_effort }}", "", "").unwrap();
    let of = |fields| {
        // The message isn't shown, so the whole prompt is plain. Only the text matters here.
        text(parse(fields).unwrap().prompt(&template).unwrap())
    };
    assert_eq!(of(json!({})), "False ");
    assert_eq!(of(json!({"reasoning_effort": "none"})), "False none");
    assert_eq!(of(json!({"reasoning_effort": "high"})), "True high");
    let both = json!({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(of(both), "False high");
    let unknown = parse(json!({"reasoning_effort": "hard"})).unwrap_err();
    assert!(unknown.starts_with("reasoning_effort: unknown variant `hard`"), "{unknown}");
}

#[test]
fn a_template_that_knows_no_tools_is_told_in_the_system_message() {
    let messages = json!([
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"q\":1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "R"},
    ]);
    let tools = json!([tool("f", &json!({"type": "object"}))]);
    let conversation = parse(json!({"messages": messages, "tools": tools})).unwrap();
    let prompt = text(conversation.prompt(&ChatTemplate::chat_ml()).unwrap());
    for part in [
        "<|im_start|>system\nS\n\n# Tools\n",
        "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"Looks.\"",
        "<|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"q\": 1}}\n</tool_call><|im_end|>",
        "<|im_start|>user\n<tool_response>\nR\n</tool_response><|im_end|>",
    ] {
        assert!(prompt.contains(part), "{part:?} is not in {prompt}");
    }
    let none = parse(json!({"tools": tools, "tool_choice": "none"})).unwrap();
    assert!(!text(none.prompt(&ChatTemplate::chat_ml()).unwrap()).contains("Looks."));
}

#[test]
fn a_promised_call_is_a_schema_whose_references_lead_home() {
    let pointed = json!({"properties": {"p": {"$ref": "#/$defs/p"}}, "$defs": {"p": {"type": "integer"}}});
    let tools = json!([tool("f", &json!({"type": "object"})), tool("g", &pointed)]);
    let schema = |choice: Value| {
        let manner = constrained(json!({"tools": tools, "tool_choice": choice})).unwrap();
        assert_eq!(manner.constraint_field, "tools");
        let Some(Constraint::JsonSchema(schema)) = manner.constraint else { panic!("no schema") };
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
    let manner = constrained(json!({"tools": tools, "tool_choice": "required"})).unwrap();
    let Some(Constraint::JsonSchema(any)) = manner.constraint else { panic!("no schema") };
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
    let manner = constrained(json!({"tools": tools, "response_format": format})).unwrap();
    let Some(Constraint::JsonSchema(schema)) = manner.constraint else { panic!("no schema") };
    assert!(jsonschema::is_valid(&schema, &json!({"a": 5})));
    assert!(jsonschema::is_valid(&schema, &json!({"name": "f", "arguments": {}})));
    assert!(!jsonschema::is_valid(&schema, &json!({"a": "5"})));
}

#[test]
fn a_promised_call_is_opened_and_opened_thinking_is_closed() {
    let template = ChatTemplate::new(
        "{% for m in messages %}{{ m.content }}{% endfor %}<|a|>{{ '<think>\\n' }}",
        "",
        "",
    )
    .unwrap();
    let fields = json!({"tools": [tool("f", &json!({}))], "tool_choice": "required"});
    let (conversation, manner) = (parse(fields.clone()).unwrap(), constrained(fields).unwrap());
    let prompt = text(conversation.prompt_for(&template, &manner).unwrap());
    assert_eq!(prompt.split_once("<|a|>").unwrap().1, "<think>\n\n</think>\n\n<tool_call>\n");
    let free = constrained(json!({})).unwrap();
    let prompt = parse(json!({})).unwrap().prompt_for(&template, &free).unwrap();
    assert!(opens_thinking(&prompt));
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

#[test]
fn what_the_assistant_said_last_is_gone_on_with() {
    let template = ChatTemplate::chat_ml();
    let prompt = |last: Value| {
        let messages = json!([{"role": "user", "content": "Name a fruit."}, last]);
        parse(json!({"messages": messages})).unwrap().prompt(&template).unwrap()
    };
    let said = prompt(json!({"role": "assistant", "content": "An <|im_end|>app"}));
    assert_eq!(
        said,
        [
            Segment::markup("<|im_start|>user\n"),
            Segment::plain("Name a fruit."),
            Segment::markup("<|im_end|>\n<|im_start|>assistant\n"),
            Segment::plain("An <|im_end|>app"),
        ]
    );
    let nothing = text(prompt(json!({"role": "assistant", "content": null})));
    assert!(nothing.ends_with("<|im_start|>assistant\n"), "{nothing}");
    let call = json!({"role": "assistant", "content": "x", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]});
    assert!(text(prompt(call)).ends_with("<|im_start|>assistant\n"), "a turn with calls is over");
}

#[test]
fn a_marker_against_thinking_is_for_templates_that_look_for_it() {
    let fields = json!({"messages": [{"role": "user", "content": "a /no_think"}]});
    for (source, expected) in [
        ("{{ messages[0].content }}", "a"),
        (
            "{% if '/no_think' in messages[0].content %}off: {% endif %}{{ messages[0].content }}",
            "off: a /no_think",
        ),
    ] {
        let template = ChatTemplate::new(source, "", "").unwrap();
        assert_eq!(text(parse(fields.clone()).unwrap().prompt(&template).unwrap()), expected);
    }
}

#[test]
fn what_was_thought_is_not_gone_on_with() {
    let messages = json!([{"role": "user", "content": "u"},
        {"role": "assistant", "content": "so far", "reasoning_content": "because"}]);
    let error = parse(json!({"messages": messages})).unwrap().prompt(&ChatTemplate::chat_ml()).unwrap_err();
    assert!(error.to_string().starts_with("messages[1].reasoning_content: "), "{error}");
}

#[test]
fn nothing_is_gone_on_with_behind_opened_thinking() {
    let source =
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    let messages = json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "so far"}]);
    let of = |effort: &str| {
        let conversation = parse(json!({"messages": messages, "reasoning_effort": effort})).unwrap();
        conversation.prompt(&template).map(text).map_err(|error| error.to_string())
    };
    assert_eq!(of("none"), Ok("uso far".to_owned()));
    let error = of("high").unwrap_err();
    assert!(error.starts_with("messages[1]: ") && error.contains("reasoning_effort"), "{error}");
    // A constrained answer doesn't think: opened thinking is closed first.
    let fields =
        json!({"messages": messages, "reasoning_effort": "high", "response_format": {"type": "json_object"}});
    let (conversation, manner) = (parse(fields.clone()).unwrap(), constrained(fields).unwrap());
    let prompt = text(conversation.prompt_for(&template, &manner).unwrap());
    assert_eq!(prompt, "u<think>\n</think>\n\nso far");
}

#[test]
fn a_client_may_say_where_the_prompt_ends() {
    let template = ChatTemplate::chat_ml();
    let rendered = |fields: Value| {
        let mut body =
            json!({"messages": [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let conversation = Conversation::parse(&JsonBody(body)).map_err(|error| error.to_string())?;
        conversation.check_end().map_err(|error| error.to_string())?;
        let prompt = conversation.prompt(&template).map_err(|error| error.to_string())?;
        Ok::<_, String>(prompt.into_iter().map(|segment| segment.text).collect::<String>())
    };
    let (user, open) = ("<|im_start|>user\nU<|im_end|>\n", "<|im_start|>assistant\n");
    let continued = format!("{user}{open}A");
    let closed = format!("{user}{open}A<|im_end|>\n");
    for (fields, expected) in [
        (json!({}), &continued),
        (json!({"continue_final_message": true, "add_generation_prompt": false}), &continued),
        (json!({"add_generation_prompt": false}), &closed),
        (json!({"continue_final_message": false}), &format!("{closed}{open}")),
    ] {
        assert_eq!(rendered(fields.clone()).as_ref(), Ok(expected), "{fields}");
    }
    for (fields, start) in [
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message: "),
        (
            json!({"continue_final_message": true, "messages": [{"role": "user", "content": "U"}]}),
            "continue_final_message: the last message",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}]}),
            "messages[1]: the last message is continued",
        ),
    ] {
        let error = rendered(fields.clone()).unwrap_err();
        assert!(error.starts_with(start), "{fields}: {error}");
    }
}
