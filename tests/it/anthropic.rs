//! Tests of Anthropic's Messages API: whole messages, streams, tools, thinking, and errors in
//! Anthropic's format.

use std::sync::Arc;

use bespoke::engine::{EngineError, EngineState, FakeEngine, ModelInfo, Script, Usage};
use serde_json::{Value, json};

use crate::daemon::{Answer, Daemon, chunks};

const CALL: &str =
    "I look.\n<tool_call>\n{\"name\": \"recall\", \"arguments\": {\"query\": \"a b\"}}\n</tool_call>";

fn body(fields: Value) -> Value {
    let mut body =
        json!({"model": "bespoke", "max_tokens": 50, "messages": [{"role": "user", "content": "x y"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn ask(daemon: &Daemon, fields: Value) -> Answer {
    daemon.post("/v1/messages", &body(fields))
}

fn tools() -> Value {
    let schema =
        json!({"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]});
    json!([{"name": "recall", "description": "Looks things up.", "input_schema": schema}])
}

/// Names of a stream's events, which must also be in their data.
fn names(stream: &str) -> Vec<String> {
    let named: Vec<String> =
        stream.lines().filter_map(|line| line.strip_prefix("event: ")).map(str::to_owned).collect();
    let data: Vec<String> =
        chunks(stream).iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named, data);
    named
}

#[test]
fn a_message_is_answered_in_anthropics_form() {
    let usage = Usage { cached_tokens: 1, ..Usage::default() };
    let daemon = Daemon::over(FakeEngine::new(Script::Text("one two".into())).with_usage(usage));
    let answer =
        ask(&daemon, json!({"system": "S", "metadata": {"user_id": "u"}, "top_k": 3, "seed": 5})).ok();
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"), "{answer}");
    assert_eq!(
        (&answer["type"], &answer["role"], &answer["content"]),
        (&json!("message"), &json!("assistant"), &json!([{"type": "text", "text": "one two"}]))
    );
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    let request = daemon.engine.requests().pop().unwrap();
    assert_eq!((request.max_tokens, request.sampling.top_k, request.sampling.seed), (Some(50), 3, Some(5)));
    let prompt: String = request.prompt.iter().map(|segment| segment.text.as_str()).collect();
    assert_eq!(prompt, "S\n\nx y\n\n");
    let expected = json!({
        "input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 1, "output_tokens": 3
    });
    assert_eq!(answer["usage"], expected);
    assert!(answer.get("timings").is_none());
    let counted = daemon.post("/v1/messages/count_tokens", &body(json!({"system": "S"}))).ok();
    assert_eq!(counted, json!({"input_tokens": 5}));
}

#[test]
fn why_a_message_ended_is_told() {
    let daemon = Daemon::script(Script::Text("one two three".into()));
    let end = |fields: Value| {
        let answer = ask(&daemon, fields).ok();
        (answer["stop_reason"].clone(), answer["stop_sequence"].clone(), answer["content"][0]["text"].clone())
    };
    assert_eq!(end(json!({"max_tokens": 1})), ("max_tokens".into(), Value::Null, "one ".into()));
    let stopped = end(json!({"stop_sequences": ["no", " three"]}));
    assert_eq!(stopped, ("stop_sequence".into(), " three".into(), "one two".into()));
    assert_eq!(end(json!({"stop_sequences": ["no"]})).0, "end_turn");
}

#[test]
fn a_stream_is_a_row_of_named_events() {
    let daemon = Daemon::script(Script::Text("<think>hm </think>one two".into()));
    let stream = ask(&daemon, json!({"stream": true})).text;
    let block = |deltas: usize| {
        [vec!["content_block_start"], vec!["content_block_delta"; deltas], vec!["content_block_stop"]]
            .concat()
    };
    let expected = [
        vec!["message_start"],
        // One delta for the thought and one for its signature.
        block(2),
        block(2),
        vec!["message_delta", "message_stop"],
    ];
    assert_eq!(names(&stream), expected.concat());
    let events = chunks(&stream);
    let message = &events[0]["message"];
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
    assert!(message["usage"]["input_tokens"].as_u64() > Some(0), "{message}");
    assert_eq!(events[1]["content_block"], json!({"type": "thinking", "thinking": "", "signature": ""}));
    assert_eq!(events[2]["delta"], json!({"type": "thinking_delta", "thinking": "hm "}));
    assert_eq!(events[5]["content_block"], json!({"type": "text", "text": ""}));
    assert_eq!((&events[5]["index"], &events[8]["index"]), (&json!(1), &json!(1)));
    assert_eq!(events[6]["delta"], json!({"type": "text_delta", "text": "one "}));
    let last = &events[9];
    assert_eq!(last["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
    assert!(last["usage"]["output_tokens"].as_u64() > Some(0), "{last}");
    let whole = ask(&daemon, json!({})).ok();
    let blocks = json!([
        {"type": "thinking", "thinking": "hm ", "signature": ""}, {"type": "text", "text": "one two"}
    ]);
    assert_eq!(whole["content"], blocks);
}

#[test]
fn calls_are_blocks() {
    let daemon = Daemon::script(Script::Text(CALL.into()));
    let answer = ask(&daemon, json!({"tools": tools()})).ok();
    assert_eq!(answer["stop_reason"], "tool_use");
    assert_eq!(answer["content"][0], json!({"type": "text", "text": "I look.\n"}));
    let call = &answer["content"][1];
    assert_eq!(
        (&call["type"], &call["name"], &call["input"]),
        (&json!("tool_use"), &json!("recall"), &json!({"query": "a b"}))
    );
    assert!(call["id"].is_string());
    let events = chunks(&ask(&daemon, json!({"tools": tools(), "stream": true})).text);
    let opened = events.iter().find(|event| event["content_block"]["type"] == "tool_use").unwrap();
    assert_eq!((&opened["index"], &opened["content_block"]["input"]), (&json!(1), &json!({})));
    let delta = events.iter().find(|event| event["delta"]["type"] == "input_json_delta").unwrap();
    assert_eq!(delta["delta"]["partial_json"], "{\"query\":\"a b\"}");
    let forced =
        ask(&daemon, json!({"tools": tools(), "tool_choice": {"type": "tool", "name": "recall"}})).ok();
    assert_eq!(forced["content"][0]["name"], "recall");
    assert!(forced["content"][0]["input"]["query"].is_string(), "{forced}");
}

#[test]
fn thinking_is_what_the_template_is_told() {
    let daemon = Daemon::script(Script::Text("one".into()));
    let template = "{{ enable_thinking }} {{ reasoning_effort }}";
    let info = ModelInfo { chat_template: Some(template.into()), ..FakeEngine::info() };
    daemon.engine.set_state(EngineState::Ready(Arc::new(info)));
    let prompt = |fields: Value| {
        ask(&daemon, fields).ok();
        let request = daemon.engine.requests().pop().unwrap();
        request.prompt.iter().map(|segment| segment.text.as_str()).collect::<String>()
    };
    assert_eq!(prompt(json!({})), "False ");
    assert_eq!(prompt(json!({"thinking": {"type": "enabled", "budget_tokens": 1024}})), "True ");
    let effort = json!({"effort": "max"});
    assert_eq!(prompt(json!({"thinking": {"type": "adaptive"}, "output_config": effort})), "True xhigh");
    assert_eq!(prompt(json!({"thinking": {"type": "disabled"}})), "False ");
}

#[test]
fn errors_have_anthropics_form() {
    let daemon = Daemon::script(Script::Echo);
    for (fields, start) in [
        (json!({"messages": []}), "messages: is empty"),
        (json!({"temperature": 3}), "temperature: found 3"),
        (json!({"stop_sequences": ["a", ""]}), "stop_sequences[1]: is empty"),
        (json!({"n": 2}), "n: found 2, expected 1"),
        (json!({"tools": [{"name": "two words"}]}), "tools[0].name: found \"two words\""),
        (json!({"mirostat": 2}), "mirostat: 2 is not supported here"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
            "messages[0].content[0]: image input is not supported",
        ),
        (
            json!({"output_config": {"format": {"type": "json_schema", "schema": "x"}}}),
            "output_config.format.schema: found a string",
        ),
    ] {
        let answer = ask(&daemon, fields.clone());
        assert_eq!(answer.status, 400, "{fields}: {}", answer.text);
        let error = answer.json();
        assert_eq!(
            (&error["type"], &error["error"]["type"]),
            (&json!("error"), &json!("invalid_request_error"))
        );
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(start), "{fields}: {message}");
    }
    let unknown = ask(&daemon, json!({"model": "claude"}));
    assert_eq!((unknown.status, &unknown.json()["error"]["type"]), (404, &json!("not_found_error")));
    assert_eq!(daemon.get("/v1/messages").json()["type"], "error");
    daemon.engine.set_script(Script::FailAfter("one ".into(), EngineError::NotFinite));
    let stream = ask(&daemon, json!({"stream": true})).text;
    assert_eq!(names(&stream).last().unwrap(), "error");
    assert_eq!(chunks(&stream).last().unwrap()["error"]["type"], "api_error");
    daemon.engine.set_script(Script::Fail(EngineError::Overloaded { waiting: 1 }));
    let full = ask(&daemon, json!({"stream": true}));
    assert_eq!((full.status, &full.json()["error"]["type"]), (503, &json!("overloaded_error")));
}
