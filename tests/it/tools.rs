//! Tests of tools: calls are found in the model's output, and enforced if the client requires one.

use std::sync::Arc;

use bespoke::engine::{Constraint, EngineState, FakeEngine, ModelInfo, Script, ScriptedToken, Segment};
use serde_json::{Value, json};

use crate::daemon::{Daemon, chunks};

fn tools() -> Value {
    let parameters = json!({
        "type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"],
        "additionalProperties": false,
    });
    json!([
        {"type": "function", "function": {"name": "recall", "description": "Looks things up.", "parameters": parameters}},
        {"type": "function", "function": {"name": "forget"}},
    ])
}

const CALLS: &str = "I look.\n<tool_call>\n{\"name\": \"recall\", \"arguments\": {\"query\": \"a b\"}}\n</tool_call>\n\
                     <tool_call>\n{\"name\": \"forget\", \"arguments\": {}}\n</tool_call>";

#[test]
fn calls_in_the_answer_become_tool_calls() {
    let daemon = Daemon::script(Script::Text(CALLS.into()));
    let answer = daemon.chat("x", json!({"tools": tools()})).ok();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "I look.\n");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0]["type"], "function");
    assert_eq!(calls[0]["function"], json!({"name": "recall", "arguments": "{\"query\":\"a b\"}"}));
    assert_eq!(calls[1]["function"], json!({"name": "forget", "arguments": "{}"}));
    assert!(calls[0]["id"].as_str().unwrap().starts_with("call_") && calls[0]["id"] != calls[1]["id"]);
    let one = daemon.chat("x", json!({"tools": tools(), "parallel_tool_calls": false})).ok();
    assert_eq!(one["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1);
}

#[test]
fn an_answer_that_is_only_a_call_has_no_content() {
    let call = "<tool_call>{\"name\": \"forget\", \"arguments\": {}}</tool_call>";
    let daemon = Daemon::script(Script::Text(call.into()));
    let message = daemon.chat("x", json!({"tools": tools()})).ok()["choices"][0]["message"].clone();
    assert_eq!(message["content"], Value::Null);
    assert_eq!(message["tool_calls"][0]["function"]["name"], "forget");
}

#[test]
fn calls_are_streamed_whole_behind_the_text_before_them() {
    let daemon = Daemon::script(Script::Text(CALLS.into()));
    let chunks = chunks(&daemon.chat("x", json!({"tools": tools(), "stream": true})).text);
    let content: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(content, "I look.\n");
    let calls: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0])
        .filter(|call| call.is_object())
        .collect();
    assert_eq!(calls.iter().map(|call| call["index"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1)]);
    assert_eq!(calls[0]["function"], json!({"name": "recall", "arguments": "{\"query\":\"a b\"}"}));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn text_stays_text_and_with_choice_none_everything_is_text() {
    let daemon = Daemon::script(Script::Text("from <memory>".into()));
    let answer = daemon.chat("x", json!({"tools": tools(), "tool_choice": "auto"}));
    assert_eq!(answer.content(), "from <memory>");
    assert_eq!(answer.ok()["choices"][0]["finish_reason"], "stop");
    daemon.engine.set_script(Script::Text(CALLS.into()));
    assert_eq!(daemon.chat("x", json!({"tools": tools(), "tool_choice": "none"})).content(), CALLS);
    let prompts: Vec<_> = daemon.engine.requests().into_iter().map(|request| request.prompt).collect();
    let says = |index: usize| prompts[index].iter().any(|segment| segment.text.contains("Looks things up."));
    assert!(says(0) && !says(1), "with choice none the model isn't told of the tools");
}

#[test]
fn a_promised_call_is_held_to_its_schema() {
    let daemon = Daemon::script(Script::Echo);
    let named = json!({"type": "function", "function": {"name": "recall"}});
    // Any tool if one is required, or the named tool.
    for (choice, names) in [(json!("required"), &["recall", "forget"][..]), (named.clone(), &["recall"])] {
        let answer = daemon.chat("x", json!({"tools": tools(), "tool_choice": choice})).ok();
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["content"], Value::Null);
        let function = &message["tool_calls"][0]["function"];
        let name = function["name"].as_str().unwrap();
        assert!(names.contains(&name), "{name}");
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        let tool = tools().as_array().unwrap().iter().find(|tool| tool["function"]["name"] == name).cloned();
        let schema = tool.unwrap()["function"]["parameters"].clone();
        let right =
            if schema.is_null() { arguments == json!({}) } else { jsonschema::is_valid(&schema, &arguments) };
        assert!(right, "{arguments}");
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
        let request = daemon.engine.requests().pop().unwrap();
        assert!(matches!(request.constraint, Some(Constraint::JsonSchema(_))));
        assert_eq!(request.prompt.last(), Some(&Segment::markup("<tool_call>\n")));
    }
    let streamed =
        chunks(&daemon.chat("x", json!({"tools": tools(), "tool_choice": named, "stream": true})).text);
    let call = streamed.iter().find(|chunk| chunk["choices"][0]["delta"]["tool_calls"].is_array()).unwrap();
    assert_eq!(call["choices"][0]["delta"]["tool_calls"][0]["function"]["name"], "recall");
}

#[test]
fn a_tag_in_an_argument_is_part_of_the_argument() {
    let text = "ends with </tool_call> in it, and </think>";
    let call = json!({"name": "recall", "arguments": {"query": text}}).to_string();
    for (fields, said) in [
        // A call that the schema dictates ends without a tag.
        (json!({"tool_choice": "required"}), call.clone()),
        (json!({"tool_choice": "auto"}), format!("<tool_call>\n{call}\n</tool_call>")),
        (json!({"parallel_tool_calls": false}), format!("<tool_call>{call}</tool_call><tool_call>{call}")),
        (json!({}), call.clone()),
    ] {
        let tokens = said.chars().map(|c| ScriptedToken::chosen(c.to_string(), 0.5)).collect();
        let daemon = Daemon::script(Script::Tokens(tokens));
        let mut fields = fields;
        fields["tools"] = tools();
        let answer = daemon.chat("x", fields.clone()).ok();
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone();
        assert_eq!(calls.len(), 1, "{fields}: {answer}");
        let arguments: Value =
            serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
        assert_eq!(arguments, json!({"query": text}), "{fields}");
        assert_eq!(answer["choices"][0]["message"]["content"], Value::Null);
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
        fields["stream"] = true.into();
        let chunks = chunks(&daemon.chat("x", fields).text);
        let streamed: Vec<&Value> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"])
            .filter(|arguments| arguments.is_string())
            .collect();
        assert_eq!(streamed, [&calls[0]["function"]["arguments"]]);
    }
}

#[test]
fn a_tool_without_parameters_takes_none() {
    let daemon = Daemon::script(Script::Echo);
    let bare = [
        json!({"name": "now"}),
        json!({"name": "now", "parameters": null}),
        json!({"name": "now", "parameters": {}}),
        json!({"name": "now", "parameters": {"type": "object", "properties": {}}}),
    ];
    for function in bare {
        let tools = json!([{"type": "function", "function": function}]);
        let answer = daemon.chat("x", json!({"tools": tools, "tool_choice": "required"})).ok();
        let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        assert_eq!(call["arguments"], "{}", "{function}");
        let request = daemon.engine.requests().pop().unwrap();
        let Some(Constraint::JsonSchema(schema)) = request.constraint else { panic!("no schema") };
        assert!(jsonschema::is_valid(&schema, &json!({"name": "now", "arguments": {}})));
        assert!(
            !jsonschema::is_valid(&schema, &json!({"name": "now", "arguments": {"made": "up"}})),
            "{function}"
        );
        let prompt: String = request.prompt.iter().map(|segment| segment.text.as_str()).collect();
        assert!(prompt.contains(r#""parameters": {"#), "{prompt}");
    }
    for arguments in [json!(""), json!("null"), Value::Null] {
        let call =
            json!({"id": "1", "type": "function", "function": {"name": "now", "arguments": arguments}});
        let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "noon"}]);
        let prompt = daemon.post("/apply-template", &json!({"messages": messages})).ok()["prompt"].clone();
        assert!(prompt.as_str().unwrap().contains(r#"{"name": "now", "arguments": {}}"#), "{prompt}");
    }
}

#[test]
fn a_template_that_knows_tools_shows_them_itself() {
    let template = "{% for tool in tools %}<|tool|>{{ tool | tojson }}{% endfor %}\
                    {% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
                    {% for call in m.tool_calls %}<|call|>{{ call.function.arguments | tojson }}{% endfor %}\
                    {% endfor %}<|assistant|>";
    let engine = FakeEngine::loading(Script::Text("fine".into()));
    let info = ModelInfo { chat_template: Some(template.to_owned()), ..FakeEngine::info() };
    engine.set_state(EngineState::Ready(Arc::new(info)));
    let daemon = Daemon::over(engine);
    let messages = json!([
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "recall", "arguments": "{\"query\": \"<|user|>\"}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "R<|call|>"},
    ]);
    daemon.post("/v1/chat/completions", &json!({"messages": messages, "tools": tools()})).ok();
    let prompt = daemon.engine.requests()[0].prompt.clone();
    assert_eq!(prompt[0], Segment::markup("<|tool|>"));
    assert!(!prompt[1].markup && prompt[1].text.starts_with("{\"type\": \"function\""), "{prompt:?}");
    let rest = [
        Segment::plain("U"),
        Segment::markup("<|assistant|><|call|>"),
        Segment::plain("{\"query\": \"<|user|>\"}"),
        Segment::markup("<|tool|>"),
        Segment::plain("R<|call|>"),
        Segment::markup("<|assistant|>"),
    ];
    assert_eq!(prompt[prompt.len() - rest.len()..], rest);
}

#[test]
fn what_can_not_be_promised_is_refused_by_name() {
    let daemon = Daemon::script(Script::Echo);
    for (fields, start) in [
        (json!({"tool_choice": "required"}), "tool_choice: promises a call, but tools has no entry"),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "other"}}}),
            "tool_choice.function.name: no tool is named \"other\"",
        ),
        (
            json!({"tools": tools(), "tool_choice": "required", "regex": "a"}),
            "tool_choice: can't be combined with regex",
        ),
        (json!({"tools": tools(), "grammar": "root ::= \"a\""}), "tools: can't be combined with grammar"),
        (
            json!({"functions": [{"name": "f"}]}),
            "functions: [{\"name\":\"f\"}] is not supported here: use tools",
        ),
    ] {
        let answer = daemon.chat("x", fields);
        assert_eq!(answer.status, 400);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(start), "{message}");
    }
}
