//! Tests of reported likelihoods: log probabilities of chat answers, and the confidence of each
//! field.

use bespoke::engine::{Script, ScriptedToken};
use serde_json::{Value, json};

use crate::daemon::{Daemon, chunks};

fn near(value: &Value, expected: f64) -> bool {
    value.as_f64().is_some_and(|value| (value - expected).abs() < 1e-4)
}

#[test]
fn log_probabilities_have_tokens_bytes_and_alternatives() {
    let daemon = Daemon::script(Script::Text("one two".into()));
    let ask = |fields| daemon.chat("x", fields).ok()["choices"][0]["logprobs"].clone();
    let plain = ask(json!({"logprobs": true}));
    let content = plain["content"].as_array().unwrap();
    assert_eq!(content.len(), 2);
    assert_eq!((&content[0]["token"], &content[0]["bytes"]), (&json!("one "), &json!("one ".as_bytes())));
    assert!(near(&content[0]["logprob"], 0.5f64.ln()));
    assert_eq!(content[0]["top_logprobs"], json!([]));
    let top = ask(json!({"logprobs": true, "top_logprobs": 3}));
    let alternatives = top["content"][1]["top_logprobs"].as_array().unwrap();
    assert_eq!(alternatives.len(), 3);
    assert_eq!(alternatives[0]["token"], "two");
    assert_eq!(ask(json!({})), Value::Null);
    assert_eq!(daemon.engine.requests().last().unwrap().report, None, "unasked, nothing is computed");
}

#[test]
fn streamed_log_probabilities_come_with_their_text() {
    let daemon = Daemon::script(Script::Text("<think>hm </think> one two".into()));
    let chunks = chunks(&daemon.chat("x", json!({"logprobs": true, "stream": true})).text);
    let pairs: Vec<(String, String)> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0])
        .filter(|choice| choice["logprobs"].is_object())
        .map(|choice| {
            let tokens = choice["logprobs"]["content"].as_array().unwrap();
            let tokens = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
            (choice["delta"]["content"].as_str().unwrap_or_default().to_owned(), tokens)
        })
        .collect();
    assert_eq!(pairs, [("one ".to_owned(), "one ".to_owned()), ("two".into(), "two".into())]);
}

#[test]
fn dictated_tokens_are_certain_and_parts_of_characters_are_exact() {
    let euro = "€".as_bytes();
    let tokens = vec![
        ScriptedToken::forced("a"),
        ScriptedToken::chosen(&euro[..2], 0.5),
        ScriptedToken::chosen(&euro[2..], 0.25),
    ];
    let daemon = Daemon::script(Script::Tokens(tokens));
    let choice = daemon.chat("x", json!({"logprobs": true})).ok()["choices"][0].clone();
    assert_eq!(choice["message"]["content"], "a€");
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content[0]["logprob"], 0.0);
    assert_eq!((&content[1]["bytes"], &content[2]["bytes"]), (&json!([226, 130]), &json!([172])));
    assert_eq!(content[1]["token"], "\u{fffd}");
}

#[test]
fn a_token_that_is_part_of_a_character_has_its_report_though_it_has_no_text() {
    let face = "😀".as_bytes();
    let begun = vec![ScriptedToken::chosen("a", 0.5), ScriptedToken::chosen(&face[..2], 0.25)];
    let daemon = Daemon::script(Script::Tokens(begun[1..].to_vec()));
    let ask = |body: Value| daemon.post("/completion", &body);
    let reply = ask(json!({"prompt": "x", "n_predict": 1, "n_probs": 2})).ok();
    assert_eq!(reply["content"], "");
    let probabilities = reply["completion_probabilities"].as_array().unwrap();
    assert_eq!(probabilities.len(), 1, "{reply}");
    assert_eq!(probabilities[0]["bytes"], json!([240, 159]));
    assert_eq!(probabilities[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert!(near(&probabilities[0]["logprob"], 0.25f64.ln()));
    // Streams report them, too, and so do answers with text before the broken character, chats and
    // token ids.
    daemon.engine.set_script(Script::Tokens(begun));
    let streamed = ask(json!({"prompt": "x", "n_probs": 1, "stream": true})).text;
    let found: Vec<Value> = chunks(&streamed)
        .iter()
        .flat_map(|chunk| chunk["completion_probabilities"].as_array().cloned().unwrap_or_default())
        .map(|token| token["bytes"].clone())
        .collect();
    assert_eq!(found, [json!([97]), json!([240, 159])]);
    let chat = daemon.chat("x", json!({"logprobs": true})).ok()["choices"][0].clone();
    assert_eq!(chat["message"]["content"], "a");
    assert_eq!(chat["logprobs"]["content"][1]["bytes"], json!([240, 159]));
    let ids = ask(json!({"prompt": "x", "return_tokens": true})).ok()["tokens"].clone();
    assert_eq!(ids.as_array().unwrap().len(), 2);
    // Unfinished thinking has no tokens in the answer.
    let thought = vec![ScriptedToken::chosen("<think>a", 0.5), ScriptedToken::chosen(&face[..2], 0.25)];
    daemon.engine.set_script(Script::Tokens(thought));
    let chat = daemon.chat("x", json!({"logprobs": true})).ok()["choices"][0].clone();
    assert_eq!(chat["logprobs"]["content"], json!([]));
}

#[test]
fn tokens_end_where_a_stop_text_ends_the_answer() {
    let daemon = Daemon::script(Script::Text("one two three".into()));
    let choice = daemon.chat("x", json!({"logprobs": true, "stop": " two"})).ok()["choices"][0].clone();
    assert_eq!(choice["message"]["content"], "one");
    assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), 1);
}

fn memory() -> Script {
    Script::Tokens(vec![
        ScriptedToken::forced(r#"{"gist":""#),
        ScriptedToken::chosen("disk", 0.5),
        ScriptedToken::chosen(" full", 0.25),
        ScriptedToken::forced(r#"","outcome":"failure","salience":"#),
        ScriptedToken::chosen("0.9", 0.8),
        ScriptedToken::forced("}"),
    ])
}

fn format() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}})
}

fn check(confidence: &Value) {
    let names: Vec<&String> = confidence.as_object().unwrap().keys().collect();
    assert_eq!(names, ["gist", "outcome", "salience"], "in the order of the answer");
    let gist = &confidence["gist"];
    assert!(near(&gist["mean"], 0.375) && near(&gist["min"], 0.25), "{confidence}");
    assert_eq!(confidence["outcome"], json!({"mean": 1.0, "min": 1.0}), "a dictated value is certain");
    assert!(near(&confidence["salience"]["mean"], 0.8));
}

#[test]
fn each_field_of_a_json_answer_can_have_its_confidence() {
    let daemon = Daemon::script(memory());
    let choice =
        daemon.chat("x", json!({"confidence": true, "response_format": format()})).ok()["choices"][0].clone();
    check(&choice["confidence"]);
    assert!(choice.get("logprobs").is_none());
    let stream =
        daemon.chat("x", json!({"confidence": true, "response_format": format(), "stream": true})).text;
    let chunks = chunks(&stream);
    check(&chunks.last().unwrap()["choices"][0]["confidence"]);
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["choices"][0].get("confidence").is_none()));
}

#[test]
fn likelihoods_that_can_not_be_told_are_refused_by_name() {
    let daemon = Daemon::script(Script::Echo);
    for (fields, start) in [
        (json!({"top_logprobs": 2}), "top_logprobs: needs logprobs: true"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs: found 21, expected 0 to 20"),
        (json!({"logprobs": 3}), "logprobs: invalid type"),
        (json!({"confidence": true}), "confidence: needs an answer in JSON"),
        (json!({"confidence": true, "regex": "a"}), "confidence: needs an answer in JSON"),
        (json!({"n_probs": 3}), "n_probs: 3 is not supported here: use logprobs and top_logprobs"),
    ] {
        let answer = daemon.chat("x", fields.clone());
        assert_eq!(answer.status, 400, "{fields}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(start), "{message}");
    }
}
