//! Tests of text completions, in OpenAI's format and in llama-server's own.

use bespoke::engine::{Constraint, Script, Segment};
use serde_json::{Value, json};

use crate::daemon::{Answer, Daemon, chunks, events};

fn ask(daemon: &Daemon, path: &str, prompt: &Value, fields: Value) -> Answer {
    let mut body = json!({"prompt": prompt});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    daemon.post(path, &body)
}

fn text(daemon: &Daemon, prompt: Value, fields: Value) -> Answer {
    ask(daemon, "/v1/completions", &prompt, fields)
}

fn native(daemon: &Daemon, prompt: Value, fields: Value) -> Answer {
    ask(daemon, "/completion", &prompt, fields)
}

#[test]
fn a_prompt_is_continued_as_markup_and_nothing_is_taken_for_thinking() {
    let daemon = Daemon::script(Script::Text("<think> one two".into()));
    let answer = text(&daemon, json!("<|user|>hi"), json!({"max_tokens": 9, "stop": "END", "seed": 5})).ok();
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let expected = json!({"text": "<think> one two", "index": 0, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(answer["choices"], json!([expected]));
    assert!(answer["usage"]["total_tokens"].is_number() && answer["timings"].is_object());
    let request = &daemon.engine.requests()[0];
    assert_eq!(request.prompt, [Segment::markup("<|user|>hi")]);
    assert_eq!((request.max_tokens, request.sampling.seed), (Some(9), Some(5)));
    assert_eq!(request.stop, ["END"]);
}

#[test]
fn prompts_may_be_many_and_each_may_have_many_answers() {
    let daemon = Daemon::script(Script::Echo);
    let answer = text(&daemon, json!(["a", "b"]), json!({"n": 2, "best_of": 2})).ok();
    let texts: Vec<(u64, &str)> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (choice["index"].as_u64().unwrap(), choice["text"].as_str().unwrap()))
        .collect();
    assert_eq!(texts, [(0, "a"), (1, "a"), (2, "b"), (3, "b")]);
    assert_eq!(answer["usage"]["prompt_tokens"], 2, "each prompt counts once");
    text(&daemon, json!([5, 6, 7]), json!({})).ok();
    assert_eq!(daemon.engine.requests().last().unwrap().prompt, [Segment::ids(vec![5, 6, 7])]);
    assert_eq!(text(&daemon, json!([[5], [6, 7]]), json!({})).ok()["choices"].as_array().unwrap().len(), 2);
}

#[test]
fn an_echo_begins_with_the_prompt() {
    let daemon = Daemon::script(Script::Text("two".into()));
    assert_eq!(text(&daemon, json!("one "), json!({"echo": true})).ok()["choices"][0]["text"], "one two");
    let ids = daemon.post("/tokenize", &json!({"content": "some words "})).ok()["tokens"].clone();
    assert_eq!(text(&daemon, ids, json!({"echo": true})).ok()["choices"][0]["text"], "some words two");
    let streamed = chunks(&text(&daemon, json!("one "), json!({"echo": true, "stream": true})).text);
    let whole: String = streamed.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(whole, "one two");
}

#[test]
fn a_streamed_completion_has_texts_an_end_and_usage() {
    let daemon = Daemon::script(Script::Text("one two".into()));
    let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
    let stream = text(&daemon, json!("x"), fields).text;
    assert_eq!(events(&stream).last().unwrap(), "[DONE]");
    let chunks = chunks(&stream);
    let texts: Vec<&str> =
        chunks[..2].iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["one ", "two"]);
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], "stop");
    assert!(chunks[2]["timings"].is_object());
    assert_eq!(chunks[3]["choices"], json!([]));
    assert!(chunks[3]["usage"]["total_tokens"].is_number());
}

#[test]
fn log_probabilities_have_the_older_form() {
    let daemon = Daemon::script(Script::Text("öne two".into()));
    let whole = text(&daemon, json!("x"), json!({"logprobs": 2})).ok()["choices"][0]["logprobs"].clone();
    assert_eq!(whole["tokens"], json!(["öne ", "two"]));
    assert_eq!(whole["text_offset"], json!([0, 4]), "places are counted in characters");
    assert_eq!(whole["token_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(whole["top_logprobs"][1].as_object().unwrap().len(), 2);
    let streamed = chunks(&text(&daemon, json!("x"), json!({"logprobs": 0, "stream": true})).text);
    assert_eq!(streamed[1]["choices"][0]["logprobs"]["text_offset"], json!([4]));
    assert_eq!(streamed[1]["choices"][0]["logprobs"]["top_logprobs"], Value::Null);
}

#[test]
fn llama_servers_own_completion_has_its_own_shape() {
    let daemon = Daemon::script(Script::Text("one\ntwo".into()));
    let fields = json!({"n_predict": 7, "temperature": 0.5, "top_k": 40, "seed": 3, "n_probs": 2, "return_tokens": true});
    let answer = native(&daemon, json!("some words"), fields.clone()).ok();
    assert_eq!(
        (&answer["content"], &answer["stop"], &answer["index"]),
        (&json!("one\ntwo"), &json!(true), &json!(0))
    );
    assert_eq!((&answer["stop_type"], &answer["truncated"]), (&json!("eos"), &json!(false)));
    assert_eq!((&answer["prompt"], &answer["has_new_line"]), (&json!("some words"), &json!(true)));
    assert_eq!(answer["tokens_evaluated"], 2);
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 2);
    assert!(answer["timings"]["predicted_per_second"].is_number());
    let settings = &answer["generation_settings"];
    assert_eq!(
        (&settings["n_predict"], &settings["top_k"], &settings["seed"]),
        (&json!(7), &json!(40), &json!(3))
    );
    let probability = &answer["completion_probabilities"][0];
    assert_eq!((&probability["token"], &probability["id"]), (&json!("one\n"), &answer["tokens"][0]));
    assert_eq!(probability["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(ask(&daemon, "/completions", &json!("x"), json!({})).ok()["content"], "one\ntwo");
    let cut = native(&daemon, json!("x"), json!({"n_predict": 1})).ok();
    assert_eq!((&cut["stop_type"], &cut["tokens_predicted"]), (&json!("limit"), &json!(1)));
    let ended = |stop: Value| {
        let answer = native(&daemon, json!("x"), json!({"stop": stop})).ok();
        (answer["stop_type"].clone(), answer["stopping_word"].clone(), answer["content"].clone())
    };
    assert_eq!(ended(json!(["no", "two"])), ("word".into(), "two".into(), "one\n".into()));
    assert_eq!(ended(json!(["no"])), ("eos".into(), "".into(), "one\ntwo".into()));
    let fields = json!(["content", "generation_settings/n_predict", "nowhere/at/all"]);
    let chosen = native(&daemon, json!("x"), json!({"n_predict": 9, "response_fields": fields})).ok();
    assert_eq!(chosen, json!({"content": "one\ntwo", "generation_settings/n_predict": 9}));
    let sampled = native(&daemon, json!("x"), json!({"n_probs": 2, "post_sampling_probs": true})).ok();
    assert!(daemon.engine.requests().pop().unwrap().sampled);
    let first = &sampled["completion_probabilities"][0];
    assert!((first["prob"].as_f64().unwrap() - 0.5).abs() < 1e-6, "{first}");
    assert_eq!(first["top_probs"].as_array().map(Vec::len), Some(2));
    let endless = native(&daemon, json!("x"), json!({"ignore_eos": true})).ok();
    assert_eq!(endless["generation_settings"]["logit_bias"], json!([{"token": 2, "bias": null}]));
    let many = native(&daemon, json!(["a", "b"]), json!({})).ok();
    assert_eq!((&many[1]["index"], &many[1]["prompt"]), (&json!(1), &json!("b")));
}

#[test]
fn llama_servers_own_stream_ends_with_the_chunk_that_says_so() {
    let daemon = Daemon::script(Script::Text("one two".into()));
    let stream =
        native(&daemon, json!("x"), json!({"stream": true, "timings_per_token": true, "n_probs": 1})).text;
    assert!(!stream.contains("[DONE]"));
    let chunks = chunks(&stream);
    assert_eq!((&chunks[0]["content"], &chunks[0]["stop"]), (&json!("one "), &json!(false)));
    assert_eq!(chunks[1]["tokens_predicted"], 2);
    assert!(chunks[0]["timings"].is_object() && chunks[0]["completion_probabilities"].is_array());
    assert_eq!((&chunks[2]["content"], &chunks[2]["stop"]), (&json!(""), &json!(true)));
    assert_eq!(chunks.len(), 3);
}

#[test]
fn both_take_shapes() {
    let daemon = Daemon::script(Script::Text("{}".into()));
    native(&daemon, json!("x"), json!({"grammar": "root ::= \"a\""})).ok();
    text(&daemon, json!("x"), json!({"json_schema": {"type": "object"}})).ok();
    let constraints: Vec<_> =
        daemon.engine.requests().into_iter().map(|request| request.constraint).collect();
    assert_eq!(constraints[0], Some(Constraint::Gbnf("root ::= \"a\"".into())));
    assert_eq!(constraints[1], Some(Constraint::JsonSchema(json!({"type": "object"}))));
}

#[test]
fn mistakes_name_their_field() {
    let daemon = Daemon::script(Script::Echo);
    for (path, body, start) in [
        ("/v1/completions", json!({}), "prompt: is missing"),
        ("/v1/completions", json!({"prompt": 5}), "prompt: found a number"),
        ("/v1/completions", json!({"prompt": []}), "prompt: is empty"),
        ("/v1/completions", json!({"prompt": ["a", 5.5]}), "prompt[1]: found 5.5"),
        ("/v1/completions", json!({"prompt": [31_999, 32_000]}), "prompt: 32000 is not a token id"),
        ("/v1/completions", json!({"prompt": ""}), "prompt: the prompt is empty"),
        ("/v1/completions", json!({"prompt": "x", "suffix": "end"}), "suffix: \"end\" is not supported here"),
        ("/v1/completions", json!({"prompt": "x", "best_of": 3}), "best_of: 3 is not supported here"),
        ("/v1/completions", json!({"prompt": "x", "logprobs": 21}), "logprobs: found 21, expected 0 to 20"),
        ("/v1/completions", json!({"prompt": "x", "logprobs": true}), "logprobs: invalid type"),
        (
            "/v1/completions",
            json!({"prompt": "x", "logprobs": 1, "echo": true}),
            "echo: can't be combined with logprobs",
        ),
        ("/v1/completions", json!({"prompt": "x", "tools": [{}]}), "tools: [{}] is not supported here"),
        (
            "/v1/completions",
            json!({"prompt": "x", "confidence": true}),
            "confidence: true is not supported here",
        ),
        ("/completion", json!({"n_predict": 5}), "prompt: is missing"),
        ("/completion", json!({"prompt": "x", "n_predict": "5"}), "n_predict: invalid type"),
        (
            "/completion",
            json!({"prompt": "x", "logprobs": 2}),
            "logprobs: 2 is not supported here: use n_probs",
        ),
        (
            "/completion",
            json!({"prompt": "x", "samplers": ["top_k"]}),
            "samplers: [\"top_k\"] is not supported here",
        ),
        ("/completion", json!({"prompt": "x", "mirostat": 1}), "mirostat: 1 is not supported here"),
    ] {
        let answer = daemon.post(path, &body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(start), "{body}: {message}");
    }
}
