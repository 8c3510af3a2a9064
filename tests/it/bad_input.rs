//! Tests of bad input: every kind gets the right status and a message that says what to change.

use std::fmt::Write as _;

use bespoke::engine::{EngineError, FakeEngine, Script};
use serde_json::{Value, json};

use crate::daemon::{Daemon, chat, events};

#[test]
fn each_kind_of_bad_input_has_its_status_and_names_the_field() {
    let daemon = Daemon::script(Script::Echo);
    let json = Some("application/json");
    let completions = "/v1/chat/completions";
    let mut report = String::new();
    let mut note = |name: &str, answer: crate::daemon::Answer| {
        writeln!(report, "{name}\n  {} {}", answer.status, answer.text).unwrap();
    };
    note("broken JSON", daemon.post_text(completions, json, "{\"messages\": [\n  {\"role\" \"user\"}]}"));
    note("empty body", daemon.post_text(completions, json, ""));
    note("not an object", daemon.post_text(completions, json, "[1]"));
    note("text/plain", daemon.post_text(completions, Some("text/plain"), &chat("x", json!({})).to_string()));
    note("form", daemon.post_text(completions, Some("application/x-www-form-urlencoded"), "a=b"));
    note("unknown path", daemon.post(&format!("{completions}/x"), &json!({})));
    note("wrong method", daemon.get(completions));
    for (name, fields) in [
        ("no messages", json!({"messages": []})),
        ("messages are text", json!({"messages": "hi"})),
        ("messages are null", json!({"messages": null})),
        (
            "unknown role",
            json!({"messages": [{"role": "user", "content": ""}, {"role": "robot", "content": ""}]}),
        ),
        ("no role", json!({"messages": [{"content": "x"}]})),
        (
            "image",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]}),
        ),
        ("content is a number", json!({"messages": [{"role": "user", "content": 7}]})),
        ("temperature", json!({"temperature": -1})),
        ("max_tokens", json!({"max_tokens": 0})),
        ("stop", json!({"stop": [""]})),
        ("n", json!({"n": 17})),
        ("top_logprobs", json!({"top_logprobs": 2})),
        ("logit_bias", json!({"logit_bias": {"1": 500}})),
        ("tool_choice", json!({"tool_choice": "required"})),
        ("two shapes", json!({"regex": "a", "response_format": {"type": "json_object"}})),
        ("mirostat", json!({"mirostat": 2})),
        ("format", json!({"response_format": {"type": "yaml"}})),
        (
            "schema is missing",
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
        ),
        (
            "schema is text",
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}}),
        ),
    ] {
        note(name, daemon.chat("x", fields));
    }
    for (name, error) in [
        ("schema is refused", EngineError::Schema("unimplemented keyword: not".into())),
        ("long prompt", EngineError::PromptTooLong { tokens: 9_000, context: 8_192 }),
        ("small budget", EngineError::BudgetTooSmall { needed: 61, given: 20 }),
    ] {
        daemon.engine.set_script(Script::Fail(error));
        note(name, daemon.chat("x", json!({})));
    }
    for (name, body) in [
        ("input is missing", json!({})),
        ("input is a number", json!({"input": 5})),
        ("no input", json!({"input": []})),
        ("empty input", json!({"input": ["a", ""]})),
        ("dimensions", json!({"input": "a", "dimensions": 3})),
        ("encoding", json!({"input": "a", "encoding_format": "hex"})),
    ] {
        note(name, daemon.post("/v1/embeddings", &body));
    }
    insta::assert_snapshot!(report);
}

#[test]
fn a_body_over_the_limit_is_413() {
    let daemon = Daemon::script(Script::Echo);
    let long = "x".repeat(2 << 20);
    let answer = daemon.chat(&long, json!({}));
    assert_eq!(answer.status, 413, "{}", answer.text);
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("2097152"));
    let fits = daemon.chat(&"x".repeat(2_000_000), json!({}));
    assert_eq!(fits.status, 200, "a body below the limit passes");
}

#[test]
fn a_prompt_longer_than_the_context_tells_both_numbers() {
    let daemon = Daemon::script(Script::Echo);
    let answer = daemon.chat(&"word ".repeat(9_000), json!({}));
    assert_eq!(answer.status, 400);
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "exceed_context_size_error");
    assert_eq!(error["n_ctx"], FakeEngine::info().n_ctx);
    assert!(error["n_prompt_tokens"].as_u64().unwrap() >= 9_000);
}

#[test]
fn an_error_after_the_first_token_is_inside_the_stream() {
    let daemon =
        Daemon::script(Script::FailAfter("some text".into(), EngineError::Internal("decode failed".into())));
    let answer = daemon.chat("x", json!({"stream": true}));
    assert_eq!(answer.status, 200);
    let data = events(&answer.text);
    let error: Value = serde_json::from_str(&data[data.len() - 2]).unwrap();
    assert_eq!(error["error"]["type"], "server_error", "{data:?}");
    assert_eq!(data.last().unwrap(), "[DONE]");
}

#[test]
fn a_request_that_takes_too_long_is_ended_and_cancelled() {
    let daemon = Daemon::with(FakeEngine::new(Script::Never), |settings| {
        settings.server.request_deadline = std::time::Duration::from_millis(200);
    });
    let answer = daemon.chat("x", json!({}));
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (504, Some("timeout_error")));
    crate::daemon::wait_until("it is cancelled", || daemon.engine.cancelled() == 1);
}
