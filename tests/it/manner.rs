//! Tests of generation parameters: each field of a chat request reaches the engine, or is refused
//! by name.

use bespoke::engine::{Constraint, EngineError, FakeEngine, Penalties, Script, Usage};
use serde_json::{Value, json};

use crate::daemon::{Daemon, chunks};

#[test]
fn every_way_to_choose_tokens_reaches_the_engine() {
    let daemon = Daemon::script(Script::Text("x".into()));
    daemon
        .chat(
            "x",
            json!({
                "presence_penalty": 0.5, "frequency_penalty": -0.5, "repeat_penalty": 1.2, "repeat_last_n": 32,
                "logit_bias": {"5": -100, "7": 2.5}, "ignore_eos": true, "n_predict": 9, "cache_prompt": false,
                "draft": false, "user": "me", "store": true, "parallel_tool_calls": true, "id_slot": 2,
            }),
        )
        .ok();
    let request = &daemon.engine.requests()[0];
    let penalties = Penalties { repeat: 1.2, presence: 0.5, frequency: -0.5, last: Some(32) };
    assert_eq!(request.sampling.penalties, penalties);
    assert_eq!(request.logit_bias, [(5, -100.0), (7, 2.5)]);
    assert_eq!((request.ignore_end, request.max_tokens), (true, Some(9)));
    assert_eq!((request.cache, request.draft, request.report), (false, false, None));
}

#[test]
fn a_bias_on_a_text_is_a_bias_on_each_of_its_tokens() {
    let daemon = Daemon::script(Script::Text("x".into()));
    let ids = daemon.post("/tokenize", &json!({"content": "two words"})).ok()["tokens"].clone();
    daemon.chat("x", json!({"logit_bias": [["two words", false], [3, 1]]})).ok();
    let id = |index: usize| ids[index].as_u64().unwrap() as u32;
    assert_eq!(daemon.engine.requests()[0].logit_bias, [(id(0), -100.0), (id(1), -100.0), (3, 1.0)]);
    let beyond = daemon.chat("x", json!({"logit_bias": [[32_000, 1]]}));
    assert_eq!(beyond.status, 400);
    assert!(beyond.text.contains("logit_bias[0][0]: 32000 is not a token id"), "{}", beyond.text);
}

#[test]
fn n_answers_have_seeds_that_count_up_and_a_prompt_that_counts_once() {
    let daemon = Daemon::script(Script::Text("one two".into()));
    let answer = daemon.chat("a b c", json!({"n": 3, "seed": 7, "temperature": 1})).ok();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(choices.iter().all(|choice| choice["message"]["content"] == "one two"));
    let mut seeds: Vec<_> = daemon.engine.requests().iter().map(|request| request.sampling.seed).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [Some(7), Some(8), Some(9)]);
    let one = daemon.chat("a b c", json!({})).ok();
    assert_eq!(answer["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    let completion = |answer: &Value| answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(completion(&answer), 3 * completion(&one));
}

#[test]
fn n_answers_can_be_streamed_together() {
    let daemon = Daemon::script(Script::Text("one two".into()));
    let fields = json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}});
    let stream = daemon.chat("x", fields).text;
    assert!(stream.trim_end().ends_with("data: [DONE]"));
    let chunks = chunks(&stream);
    let (mut contents, mut ends) = ([String::new(), String::new()], [0, 0]);
    for chunk in &chunks[..chunks.len() - 1] {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        contents[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        ends[index] += usize::from(choice["finish_reason"] == "stop");
    }
    assert_eq!((contents, ends), (["one two".to_owned(), "one two".to_owned()], [1, 1]));
    let usage = chunks.last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["completion_tokens"].as_u64() >= Some(4));
}

#[test]
fn if_one_of_n_can_not_be_taken_none_is() {
    let daemon = Daemon::over(FakeEngine::new(Script::Never).with_limit(2));
    for stream in [false, true] {
        let answer = daemon.chat("x", json!({"n": 3, "stream": stream}));
        assert_eq!(answer.status, 503, "{}", answer.text);
        crate::daemon::wait_until("the two are cancelled", || daemon.engine.running() == 0);
    }
    daemon.engine.set_script(Script::Fail(EngineError::Internal("decode failed".into())));
    assert_eq!(daemon.chat("x", json!({"n": 2})).status, 500);
}

#[test]
fn every_shape_reaches_the_engine() {
    let daemon = Daemon::script(Script::Text("{}".into()));
    let schema = json!({"type": "object"});
    for (fields, constraint) in [
        (json!({"json_schema": schema}), Constraint::JsonSchema(schema.clone())),
        (json!({"grammar": "root ::= \"a\""}), Constraint::Gbnf("root ::= \"a\"".into())),
        (json!({"regex": "[ab]+"}), Constraint::Regex("[ab]+".into())),
        (
            json!({"response_format": {"type": "regex", "pattern": "[ab]+"}}),
            Constraint::Regex("[ab]+".into()),
        ),
        (json!({"response_format": {"type": "json_object"}}), Constraint::JsonObject),
    ] {
        daemon.chat("x", fields.clone()).ok();
        assert_eq!(daemon.engine.requests().last().unwrap().constraint, Some(constraint), "{fields}");
    }
}

#[test]
fn what_the_engine_finds_wrong_with_a_shape_names_its_field() {
    let daemon = Daemon::script(Script::Echo);
    let grammar = EngineError::Grammar("unclosed group".into());
    let schema = EngineError::Schema("#/items/type: found 5".into());
    let format = json!({"type": "regex", "pattern": "("});
    for (error, fields, start) in [
        (&grammar, json!({"regex": "("}), "regex: the grammar can't be compiled: unclosed group"),
        (&grammar, json!({"grammar": "root ::="}), "grammar: the grammar can't be compiled: unclosed group"),
        (
            &grammar,
            json!({"response_format": format}),
            "response_format: the grammar can't be compiled: unclosed group",
        ),
        (
            &schema,
            json!({"json_schema": {}}),
            "json_schema: the schema can't be compiled: #/items/type: found 5",
        ),
    ] {
        daemon.engine.set_script(Script::Fail(error.clone()));
        let answer = daemon.chat("x", fields);
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["message"], start);
    }
}

#[test]
fn timings_come_with_each_chunk_if_asked_for_and_tell_of_drafts() {
    let usage = Usage { drafted_tokens: 8, accepted_tokens: 5, cached_tokens: 1, ..Usage::default() };
    let daemon = Daemon::over(FakeEngine::new(Script::Text("one two".into())).with_usage(usage));
    let chunks_of = |fields| chunks(&daemon.chat("x", fields).text);
    let timed = chunks_of(json!({"stream": true, "timings_per_token": true}));
    let counts: Vec<_> = timed.iter().map(|chunk| chunk["timings"]["predicted_n"].as_u64()).collect();
    assert_eq!(counts[..3], [None, Some(1), Some(2)]);
    assert_eq!(timed[1]["timings"]["cache_n"], 1);
    let last = &timed.last().unwrap()["timings"];
    assert_eq!((&last["draft_n"], &last["draft_n_accepted"]), (&json!(8), &json!(5)));
    let plain = chunks_of(json!({"stream": true}));
    assert!(plain[1].get("timings").is_none() && plain.last().unwrap()["timings"].is_object());
}

#[test]
fn the_developers_words_are_the_systems_and_effort_is_taken() {
    let daemon = Daemon::script(Script::Echo);
    let messages = json!([{"role": "developer", "content": "D"}, {"role": "user", "content": "U"}]);
    let ask = |effort: &str| {
        let body = json!({"messages": messages, "reasoning_effort": effort});
        daemon.post("/v1/chat/completions", &body)
    };
    for effort in ["none", "minimal", "low", "medium", "high"] {
        ask(effort).ok();
    }
    let wrong = ask("hard");
    assert_eq!(wrong.status, 400);
    assert!(wrong.text.contains("reasoning_effort: unknown variant `hard`"), "{}", wrong.text);
}
