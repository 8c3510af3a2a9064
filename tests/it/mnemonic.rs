//! Tests that mnemonic, a daemon of the same owner, works with ours: each trap of its client has a
//! test.

use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bespoke::engine::{EngineError, EngineState, FakeEngine, Sampling, Script};
use serde_json::{Value, json};

use crate::daemon::{Daemon, chat, events, read_until, wait_until};

fn schema(properties: &Value) -> Value {
    let names: Vec<&String> = properties.as_object().unwrap().keys().collect();
    json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
}

fn format(name: &str, schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": name, "strict": true, "schema": schema}})
}

#[test]
fn trap_1_an_absent_temperature_is_greedy() {
    let daemon = Daemon::script(Script::Echo);
    daemon.chat("x", json!({})).ok();
    daemon.chat("x", json!({"temperature": 0.3})).ok();
    let requests = daemon.engine.requests();
    assert_eq!(requests[0].sampling, Sampling::GREEDY);
    assert_eq!(requests[1].sampling, Sampling { temperature: 0.3, ..Sampling::GREEDY });
}

#[test]
fn trap_1_the_meaning_of_an_absent_temperature_can_be_configured() {
    let daemon = Daemon::with(FakeEngine::new(Script::Echo), |settings| settings.sampling.temperature = 0.5);
    daemon.chat("x", json!({})).ok();
    assert_eq!(daemon.engine.requests()[0].sampling, Sampling { temperature: 0.5, ..Sampling::GREEDY });
}

#[test]
fn trap_2_the_no_think_marker_is_stripped_and_reasoning_effort_is_taken() {
    let daemon = Daemon::script(Script::Echo);
    let answer = daemon.chat("what happened? /no_think", json!({"reasoning_effort": "none"}));
    assert_eq!(answer.content().trim(), "what happened?");
    let kwargs = json!({"chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(daemon.chat("a", kwargs).content().trim(), "a");
}

#[test]
fn trap_3_content_may_be_null_in_any_message() {
    let daemon = Daemon::script(Script::Echo);
    let messages = json!([
        {"role": "system", "content": null},
        {"role": "user", "content": null},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "recall", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": null},
        {"role": "user", "content": "still here"},
    ]);
    let answer = daemon.post("/v1/chat/completions", &json!({"messages": messages}));
    assert!(answer.content().contains("still here"));
}

#[test]
fn trap_4_a_full_queue_is_503_with_retry_after_at_once() {
    let daemon = Daemon::over(FakeEngine::new(Script::Never).with_limit(1));
    let _held = daemon.chat_connection(json!({}));
    wait_until("the first request runs", || daemon.engine.running() == 1);
    for stream in [false, true] {
        let start = Instant::now();
        let answer = daemon.chat("x", json!({"stream": stream}));
        assert_eq!((answer.status, answer.retry_after.is_some()), (503, true), "{}", answer.text);
        assert_eq!(answer.json()["error"]["type"], "unavailable_error");
        assert!(start.elapsed() < Duration::from_secs(2), "it waited for {:?}", start.elapsed());
    }
}

#[test]
fn trap_4_what_can_never_succeed_is_4xx_and_what_may_later_is_5xx() {
    let daemon = Daemon::script(Script::Echo);
    for (error, status) in [
        (EngineError::PromptTooLong { tokens: 9_000, context: 8_192 }, 400),
        (EngineError::BudgetTooSmall { needed: 60, given: 20 }, 400),
        (EngineError::Schema("unknown keyword".into()), 400),
        (EngineError::EmptyPrompt, 400),
        (EngineError::Overloaded { waiting: 3 }, 503),
        (EngineError::Stopped, 503),
        (EngineError::Internal("decode failed".into()), 500),
    ] {
        daemon.engine.set_script(Script::Fail(error.clone()));
        assert_eq!(daemon.chat("x", json!({})).status, status, "{error}");
        assert_eq!(daemon.chat("x", json!({"stream": true})).status, status, "{error}, streaming");
    }
}

/// The promise is 50 ms, on a machine with other load: the best of five must keep it, and all must
/// stop.
#[test]
fn trap_4_generation_stops_when_the_client_is_gone() {
    for stream in [false, true] {
        let daemon =
            Daemon::script(Script::Slow { text: "word ".repeat(10_000), delay: Duration::from_millis(10) });
        let mut best = Duration::MAX;
        for round in 1..=5 {
            let mut connection = daemon.chat_connection(json!({"stream": stream}));
            wait_until("it runs", || daemon.engine.running() == 1);
            if stream {
                read_until(&mut connection, "word");
            }
            drop(connection);
            best = best.min(wait_until("it is cancelled", || daemon.engine.cancelled() == round));
            assert_eq!(daemon.engine.running(), 0);
        }
        assert!(best <= Duration::from_millis(50), "stream {stream}: {best:?}");
    }
}

#[test]
fn trap_5_models_answers_before_the_weights_are_loaded_and_completions_wait() {
    let daemon = Arc::new(Daemon::over(FakeEngine::loading(Script::Text("done".into()))));
    assert_eq!(daemon.get("/v1/models").ok()["data"][0]["object"], "model");
    let health = daemon.get("/health");
    assert_eq!(health.status, 503);
    assert_eq!(
        health.json(),
        json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
    );
    let waiting = {
        let daemon = Arc::clone(&daemon);
        thread::spawn(move || daemon.chat("x", json!({})).content())
    };
    thread::sleep(Duration::from_millis(100));
    assert!(!waiting.is_finished() && daemon.engine.requests().is_empty());
    daemon.engine.set_state(EngineState::Ready(Arc::new(FakeEngine::info())));
    assert_eq!(waiting.join().unwrap(), "done");
    assert_eq!(daemon.get("/health").ok(), json!({"status": "ok"}));
    assert_eq!(daemon.get("/v1/models").ok()["data"][0]["meta"]["n_embd"], FakeEngine::info().n_embd);
}

#[test]
fn trap_5_no_more_requests_wait_for_the_load_than_the_queue_holds() {
    let daemon = Daemon::with(FakeEngine::loading(Script::Echo), |settings| settings.model.queue = 1);
    let mut connections: Vec<_> = (0..2).map(|_| daemon.chat_connection(json!({}))).collect();
    for connection in &connections {
        connection.set_nonblocking(true).unwrap();
    }
    let mut heads = [String::new(), String::new()];
    wait_until("one of the two is refused", || {
        for (connection, head) in connections.iter_mut().zip(&mut heads) {
            let mut buffer = [0; 512];
            if let Ok(length) = connection.read(&mut buffer) {
                head.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        }
        heads.iter().any(|head| head.starts_with("HTTP/1.1 503"))
    });
    assert!(heads.iter().any(String::is_empty), "the other one waits: {heads:?}");
}

#[test]
fn trap_5_models_answers_in_milliseconds_while_generating() {
    let daemon = Daemon::script(Script::Never);
    let _held: Vec<_> = (0..8).map(|_| daemon.chat_connection(json!({}))).collect();
    wait_until("all run", || daemon.engine.running() == 8);
    let best = (0..5).map(|_| {
        let start = Instant::now();
        daemon.get("/v1/models").ok();
        start.elapsed()
    });
    assert!(best.min().unwrap() < Duration::from_millis(50));
}

#[test]
fn trap_6_several_processes_are_served_at_once() {
    let daemon =
        Arc::new(Daemon::script(Script::Slow { text: "a b c ".into(), delay: Duration::from_millis(50) }));
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let daemon = Arc::clone(&daemon);
            thread::spawn(move || daemon.chat("x", json!({})).content())
        })
        .collect();
    wait_until("they run together", || daemon.engine.running() >= 3);
    for client in clients {
        assert_eq!(client.join().unwrap(), "a b c ");
    }
}

#[test]
fn trap_7_the_schema_alone_tells_the_task() {
    let text = json!({"type": "string"});
    let (number, truth, texts) = (
        json!({"type": "number"}),
        json!({"type": "boolean"}),
        json!({"type": "array", "items": {"type": "string"}}),
    );
    let tasks = [
        ("classification_response", json!({"relation_type": text})),
        ("episode_synthesis", json!({"title": text, "summary": text, "concepts": texts, "salience": number})),
        ("gate_response", json!({"worth_remembering": truth, "salience": number, "reason": text})),
        ("merge_gist", json!({"summary": text, "content": text})),
        (
            "pattern_response",
            json!({"is_pattern": truth, "title": text, "description": text, "pattern_type": text, "concepts": texts}),
        ),
        (
            "principle_response",
            json!({"has_principle": truth, "title": text, "principle": text, "concepts": texts, "confidence": number}),
        ),
        (
            "insight_response",
            json!({"has_insight": truth, "title": text, "insight": text, "concepts": texts, "confidence": number}),
        ),
    ];
    let daemon = Daemon::script(Script::Echo);
    let mut all: Vec<(&str, Value)> =
        tasks.iter().map(|(name, properties)| (*name, schema(properties))).collect();
    all.push(("encoding_response", bespoke::task::encoding_schema()));
    for (name, schema) in all {
        let fields =
            json!({"response_format": format(name, &schema), "max_tokens": 1024, "temperature": 0.3});
        let answer: Value = serde_json::from_str(&daemon.chat("x", fields).content()).unwrap();
        assert!(jsonschema::is_valid(&schema, &answer), "{name}: {answer}");
    }
}

#[test]
fn trap_8_no_thinking_reaches_the_content() {
    let daemon = Daemon::script(Script::Text("<think>\nhmm, let me see\n</think>\n\nThe answer.".into()));
    let answer = daemon.chat("x", json!({}));
    assert_eq!(answer.content(), "The answer.");
    assert_eq!(answer.ok()["choices"][0]["message"]["reasoning_content"], "\nhmm, let me see\n");
    let stream = daemon.chat("x", json!({"stream": true})).text;
    let content: String = events(&stream)
        .iter()
        .filter_map(|data| serde_json::from_str::<Value>(data).ok())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(content, "The answer.");
}

#[test]
fn trap_9_tools_may_be_sent_and_are_answered_with_text() {
    let daemon = Daemon::script(Script::Text("from memory".into()));
    let tool = json!({"type": "function", "function": {"name": "recall", "parameters": {"type": "object"}}});
    let body = chat("x", json!({"tools": vec![tool; 5], "tool_choice": "auto", "temperature": 0.5}));
    let answer = daemon.post("/v1/chat/completions", &body);
    assert_eq!(answer.content(), "from memory");
    let choice = &answer.ok()["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert!(choice["message"].get("tool_calls").is_none());
}

#[test]
fn what_the_client_reads_is_there() {
    let daemon = Daemon::script(Script::Text("one two three".into()));
    let answer = daemon.chat("a b", json!({"max_tokens": 2})).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["object"], "chat.completion");
    let usage = &answer["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"].as_u64(), Some(sum));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    assert!(answer["timings"]["predicted_per_second"].is_number());
}

#[test]
fn embeddings_are_floats_in_order_and_of_one_width() {
    let daemon = Daemon::script(Script::Echo);
    let answer = daemon
        .post("/v1/embeddings", &json!({"model": "bespoke", "input": ["one", "two words", "one"]}))
        .ok();
    let data = answer["data"].as_array().unwrap();
    let vectors: Vec<Vec<f64>> =
        data.iter().map(|entry| serde_json::from_value(entry["embedding"].clone()).unwrap()).collect();
    assert_eq!(data.iter().map(|entry| entry["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(vectors.iter().all(|vector| vector.len() == FakeEngine::info().n_embd as usize));
    assert_eq!(vectors[0], vectors[2]);
    assert!(vectors[0] != vectors[1] && answer["usage"]["total_tokens"].as_u64() > Some(0));
}
