//! Tests of OpenAI's Responses API: whole responses, streams, tools, thinking, and that nothing is
//! stored.

use bespoke::engine::{Constraint, EngineError, FakeEngine, Script, Usage};
use serde_json::{Value, json};

use crate::daemon::{Answer, Daemon, chunks};

const CALL: &str =
    "I look.\n<tool_call>\n{\"name\": \"recall\", \"arguments\": {\"query\": \"a b\"}}\n</tool_call>";

fn ask(daemon: &Daemon, fields: Value) -> Answer {
    let mut body = json!({"model": "bespoke", "input": "x y"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    daemon.post("/v1/responses", &body)
}

fn tools() -> Value {
    let schema =
        json!({"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]});
    json!([{"type": "function", "name": "recall", "parameters": schema}])
}

/// Names of a stream's events, which must also be in their data and be numbered.
fn names(stream: &str) -> Vec<String> {
    let named: Vec<String> =
        stream.lines().filter_map(|line| line.strip_prefix("event: ")).map(str::to_owned).collect();
    for (number, event) in chunks(stream).iter().enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(named[number]), &json!(number)));
    }
    named
}

#[test]
fn a_response_is_answered_in_openais_form() {
    let usage = Usage { cached_tokens: 1, ..Usage::default() };
    let daemon = Daemon::over(FakeEngine::new(Script::Text("one two".into())).with_usage(usage));
    let answer = ask(&daemon, json!({"instructions": "S", "max_output_tokens": 9, "store": true})).ok();
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"), "{answer}");
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("completed")));
    assert_eq!((&answer["store"], &answer["instructions"]), (&json!(false), &json!("S")));
    let item = &answer["output"][0];
    assert!(item["id"].as_str().unwrap().starts_with("msg_"), "{item}");
    assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
    let text = json!([{"type": "output_text", "text": "one two", "annotations": [], "logprobs": []}]);
    assert_eq!(item["content"], text);
    let request = daemon.engine.requests().pop().unwrap();
    let prompt: String = request.prompt.iter().map(|segment| segment.text.as_str()).collect();
    assert_eq!((prompt.as_str(), request.max_tokens), ("S\n\nx y\n\n", Some(9)));
    assert_eq!(
        (&answer["usage"]["input_tokens"], &answer["usage"]["input_tokens_details"]["cached_tokens"]),
        (&json!(5), &json!(1))
    );
    let cut = ask(&daemon, json!({"max_output_tokens": 1})).ok();
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    for path in ["/v1/responses/input_tokens", "/responses/input_tokens"] {
        assert_eq!(daemon.post(path, &json!({"input": "x y"})).ok()["input_tokens"], 3, "{path}");
    }
    assert_eq!(daemon.post("/responses", &json!({"input": "x"})).ok()["object"], "response");
}

#[test]
fn a_stream_is_a_row_of_named_and_numbered_events() {
    let daemon = Daemon::script(Script::Text("<think>hm </think>one two".into()));
    let stream =
        ask(&daemon, json!({"stream": true, "timings_per_token": true, "return_progress": true})).text;
    let item = |kind: &str, deltas: usize| {
        let mut events =
            vec!["response.output_item.added".to_owned(), "response.content_part.added".to_owned()];
        events.extend(vec![format!("response.{kind}.delta"); deltas]);
        events.push(format!("response.{kind}.done"));
        events.extend(["content_part.done", "output_item.done"].map(|name| format!("response.{name}")));
        events
    };
    let begin =
        ["created", "in_progress", "in_progress", "in_progress"].map(|name| format!("response.{name}"));
    let expected = [
        begin.to_vec(),
        item("reasoning_text", 1),
        item("output_text", 2),
        vec!["response.completed".to_owned()],
    ];
    assert_eq!(names(&stream), expected.concat());
    let events = chunks(&stream);
    let read: Vec<&Value> =
        events.iter().map(|event| &event["prompt_progress"]).filter(|read| read.is_object()).collect();
    assert_eq!((&read[0]["processed"], &read[1]["processed"]), (&json!(0), &json!(3)));
    assert_eq!(read[1]["total"], 3);
    let deltas: Vec<&Value> =
        events.iter().filter(|event| event["type"] == "response.output_text.delta").collect();
    assert_eq!((&deltas[0]["delta"], &deltas[1]["delta"]), (&json!("one "), &json!("two")));
    assert_eq!((&deltas[0]["output_index"], &deltas[0]["content_index"]), (&json!(1), &json!(0)));
    assert!(deltas[0]["timings"]["predicted_n"].is_number(), "{}", deltas[0]);
    let last = events.last().unwrap();
    assert!(last["timings"].is_object());
    let output = &last["response"]["output"];
    assert_eq!((&output[0]["type"], &output[0]["content"][0]["text"]), (&json!("reasoning"), &json!("hm ")));
    assert_eq!(
        (&output[1]["id"], &output[1]["content"][0]["text"]),
        (&deltas[0]["item_id"], &json!("one two"))
    );
}

#[test]
fn calls_are_items() {
    let daemon = Daemon::script(Script::Text(CALL.into()));
    let answer = ask(&daemon, json!({"tools": tools()})).ok();
    let call = &answer["output"][1];
    assert_eq!(
        (&call["type"], &call["name"], &call["arguments"]),
        (&json!("function_call"), &json!("recall"), &json!("{\"query\":\"a b\"}"))
    );
    assert!(call["call_id"].as_str().unwrap().starts_with("call_"));
    let events = chunks(&ask(&daemon, json!({"tools": tools(), "stream": true})).text);
    let delta =
        events.iter().find(|event| event["type"] == "response.function_call_arguments.delta").unwrap();
    assert_eq!((&delta["delta"], &delta["output_index"]), (&json!("{\"query\":\"a b\"}"), &json!(1)));
    let forced =
        ask(&daemon, json!({"tools": tools(), "tool_choice": {"type": "function", "name": "recall"}})).ok();
    assert_eq!(forced["output"][0]["name"], "recall");
}

#[test]
fn a_format_is_a_shape() {
    let daemon = Daemon::script(Script::Echo);
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]});
    let format = json!({"type": "json_schema", "name": "n", "strict": true, "schema": schema});
    let answer = ask(&daemon, json!({"text": {"format": format}})).ok();
    assert_eq!(answer["output"][0]["content"][0]["text"], "{\"a\":false}");
    let constraint = daemon.engine.requests().pop().unwrap().constraint;
    assert_eq!(constraint, Some(Constraint::JsonSchema(schema)));
}

#[test]
fn what_would_have_to_be_kept_is_refused_and_mistakes_have_this_apis_names() {
    let daemon = Daemon::script(Script::Echo);
    for (fields, param) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"input": []}), "input"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"reasoning": {"effort": "much"}}), "reasoning.effort"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "text.format.schema"),
        (json!({"tools": [{"type": "function", "name": "two words"}]}), "tools[0].name"),
        (json!({"n": 3}), "n"),
        (json!({"mirostat": 2}), "mirostat"),
    ] {
        let answer = ask(&daemon, fields.clone());
        assert_eq!(answer.status, 400, "{fields}: {}", answer.text);
        assert_eq!(answer.json()["error"]["param"], param, "{fields}: {}", answer.text);
    }
    daemon.engine.set_script(Script::FailAfter("one ".into(), EngineError::NotFinite));
    let events = chunks(&ask(&daemon, json!({"stream": true})).text);
    assert_eq!(
        (&events.last().unwrap()["type"], &events.last().unwrap()["code"]),
        (&json!("error"), &json!("server_error"))
    );
}
