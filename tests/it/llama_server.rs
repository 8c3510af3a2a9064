//! Tests of llama-server's smaller routes (tokens, templates, properties, slots, adapters) and of
//! OpenAI's models route.

use std::path::Path;
use std::sync::Arc;

use bespoke::engine::{EngineState, FakeEngine, ModelInfo, Script, Segment};
use serde_json::{Value, json};

use crate::daemon::{Daemon, wait_until};

#[test]
fn texts_become_tokens_and_tokens_become_texts() {
    let daemon = Daemon::script(Script::Echo);
    let ids = daemon.post("/tokenize", &json!({"content": "one two three"})).ok()["tokens"].clone();
    assert_eq!(ids.as_array().unwrap().len(), 3);
    assert_eq!(daemon.post("/detokenize", &json!({"tokens": ids})).ok(), json!({"content": "one two three"}));
    let pieces = daemon.post("/tokenize", &json!({"content": "one two", "with_pieces": true})).ok();
    assert_eq!(pieces["tokens"][0], json!({"id": ids[0], "piece": "one "}));
    let mixed = daemon.post("/tokenize", &json!({"content": [7, "one "], "add_special": true})).ok();
    assert_eq!(mixed["tokens"], json!([7, ids[0]]));
    assert_eq!(daemon.post("/tokenize", &json!({"content": ""})).ok(), json!({"tokens": []}));
    assert_eq!(daemon.post("/detokenize", &json!({"tokens": []})).ok(), json!({"content": ""}));
}

#[test]
fn the_template_is_applied_as_for_a_chat() {
    let daemon = Daemon::script(Script::Echo);
    let tools = json!([{"type": "function", "function": {"name": "recall"}}]);
    let messages = json!([{"role": "developer", "content": "S"}, {"role": "user", "content": "U"}]);
    let body = json!({"messages": messages, "tools": tools});
    let applied = daemon.post("/apply-template", &body).ok()["prompt"].clone();
    daemon.post("/v1/chat/completions", &body).ok();
    let asked: String =
        daemon.engine.requests()[0].prompt.iter().map(|segment| segment.text.as_str()).collect();
    assert_eq!(applied, asked);
    assert!(asked.contains("recall") && asked.contains('U'));
}

#[test]
fn props_tell_the_model_and_the_defaults() {
    let engine = FakeEngine::loading(Script::Echo);
    let daemon = Daemon::with(engine, |settings| {
        settings.sampling.top_k = 40;
        settings.sampling.seed = Some(42);
    });
    assert_eq!(daemon.get("/props").status, 503);
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let info = ModelInfo { chat_template: Some(template.into()), ..FakeEngine::info() };
    daemon.engine.set_state(EngineState::Ready(Arc::new(info)));
    let props = daemon.get("/props").ok();
    let defaults = &props["default_generation_settings"];
    assert_eq!(defaults["n_ctx"], FakeEngine::info().n_ctx);
    assert_eq!(defaults["params"]["top_k"], 40);
    assert_eq!((&defaults["params"]["seed"], &props["is_sleeping"]), (&json!(42), &json!(false)));
    assert!(
        props["model_path"]
            .as_str()
            .is_some_and(|path| Path::new(path).extension().is_some_and(|form| form == "gguf")),
        "{props}"
    );
    assert_eq!((&props["total_slots"], &props["chat_template"]), (&json!(1), &json!(template)));
    assert_eq!((&props["bos_token"], &props["eos_token"]), (&json!("<|bos|>"), &json!("<|end|>")));
    assert!(props["build_info"].as_str().unwrap().starts_with("bespoke-"));
    assert_eq!(daemon.post("/props", &json!({"chat_template": "x"})).status, 405, "nothing can be set");
}

#[test]
fn slots_tell_what_is_done_and_no_texts() {
    let daemon = Daemon::script(Script::Never);
    let idle = daemon.get("/slots").ok();
    assert_eq!((&idle[0]["id"], &idle[0]["is_processing"]), (&json!(0), &json!(false)));
    assert_eq!(daemon.get("/slots?fail_on_no_slot=1").status, 200);
    let _held = daemon.chat_connection(json!({}));
    wait_until("it runs", || daemon.engine.running() == 1);
    let busy = daemon.get("/slots").ok();
    assert_eq!((&busy[0]["is_processing"], &busy[0]["n_ctx"]), (&json!(true), &json!(8_192)));
    assert!(busy[0].get("prompt").is_none());
    assert!(busy[0]["id_task"].as_u64() > Some(0) && idle[0]["id_task"] == -1, "{busy}");
    assert!(busy[0]["request"].is_string(), "{busy}");
    assert_eq!(
        (&idle[0]["next_token"][0]["n_remain"], &idle[0]["next_token"][0]["n_decoded"]),
        (&json!(-1), &json!(0))
    );
    assert_eq!(daemon.get("/slots?fail_on_no_slot=1").status, 503);
}

#[test]
fn no_adapter_is_loaded_and_none_can_be_set() {
    let daemon = Daemon::script(Script::Echo);
    assert_eq!(daemon.get("/lora-adapters").ok(), json!([]));
    assert_eq!(daemon.post("/lora-adapters", &json!([])).ok(), json!({"success": true}));
    let answer = daemon.post("/lora-adapters", &json!([{"id": 3, "scale": 0.5}]));
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["message"], "[0].id: no adapter has the id 3; none is loaded");
}

#[test]
fn a_model_can_be_asked_for_by_its_name() {
    let daemon =
        Daemon::with(FakeEngine::new(Script::Echo), |settings| settings.model.id = "team/small".into());
    let listed = daemon.get("/v1/models").ok()["data"][0].clone();
    assert_eq!(daemon.get("/v1/models/team/small").ok(), listed);
    let other = daemon.get("/v1/models/gpt-4");
    assert_eq!(other.status, 404);
    let error = &other.json()["error"];
    assert_eq!(error["type"], "not_found_error");
    assert_eq!(error["message"], "no model is named \"gpt-4\"; this daemon serves \"team/small\"");
}

#[test]
fn embeddings_take_token_ids() {
    let daemon = Daemon::script(Script::Echo);
    let embed = |input: Value| {
        daemon.post("/v1/embeddings", &json!({"input": input, "user": "me"})).ok()["data"].clone()
    };
    let ids = daemon.post("/tokenize", &json!({"content": "two words"})).ok()["tokens"].clone();
    assert_eq!(embed(ids.clone()), embed(json!("two words")));
    assert_eq!(embed(json!([ids, [7]])).as_array().unwrap().len(), 2);
}

#[test]
fn mistakes_name_their_field() {
    let daemon = Daemon::script(Script::Echo);
    for (path, body, start) in [
        ("/tokenize", json!({}), "content: is missing"),
        ("/tokenize", json!({"content": 5}), "content: found a number"),
        ("/tokenize", json!({"content": "x", "with_pieces": "yes"}), "with_pieces: invalid type"),
        ("/detokenize", json!({}), "tokens: is missing"),
        ("/detokenize", json!({"tokens": "5"}), "tokens: found a string"),
        ("/detokenize", json!({"tokens": [1, "a"]}), "tokens[1]: found \"a\""),
        ("/detokenize", json!({"tokens": [1, 32_000]}), "tokens[1]: 32000 is not a token id"),
        ("/apply-template", json!({}), "messages: is missing"),
        (
            "/apply-template",
            json!({"messages": [{"role": "robot"}]}),
            "messages[0].role: unknown variant `robot`",
        ),
        ("/lora-adapters", json!({"id": 1}), "body: found {\"id\":1}, expected an array"),
        ("/lora-adapters", json!([{"scale": 1}]), "[0].id: is missing"),
        ("/v1/embeddings", json!({"input": [1, -1]}), "input[1]: found -1"),
    ] {
        let answer = daemon.post(path, &body);
        assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(start), "{path} {body}: {message}");
    }
}

#[test]
fn prompts_in_text_form_reach_the_engine_as_markup_only_where_asked() {
    let daemon = Daemon::script(Script::Echo);
    daemon.post("/completion", &json!({"prompt": "<|user|>"})).ok();
    assert_eq!(daemon.engine.requests()[0].prompt, [Segment::markup("<|user|>")]);
}

#[test]
fn embeddings_are_those_of_the_post() {
    let daemon = Daemon::script(Script::Echo);
    let ask = |fields: serde_json::Value| {
        let mut body = json!({"input": "x"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        daemon.post("/v1/embeddings", &body)
    };
    for fields in
        [json!({}), json!({"model": null}), json!({"model": "bespoke"}), json!({"model": "", "lora": []})]
    {
        assert_eq!(ask(fields.clone()).status, 200, "{fields}");
    }
    let unknown = ask(json!({"model": "text-embedding-3-small"}));
    assert_eq!(unknown.status, 404);
    let message = unknown.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("this daemon serves"), "{message}");
    let spokes = ask(json!({"lora": [{"id": 0}]}));
    assert_eq!((spokes.status, &spokes.json()["error"]["param"]), (400, &json!("lora")));
}

#[test]
fn more_answers_than_there_can_be_room_for_are_refused_before_anything_is_done() {
    let daemon = Daemon::with(FakeEngine::new(Script::Echo), |settings| {
        (settings.model.lanes, settings.model.queue) = (2, 3);
    });
    let ask = |prompts: usize, n: u32| {
        daemon.post("/v1/completions", &json!({"prompt": vec!["x"; prompts], "n": n, "max_tokens": 4}))
    };
    assert_eq!(ask(5, 1).status, 200);
    let asked = daemon.engine.requests().len();
    let error = ask(3, 2);
    assert_eq!((error.status, &error.json()["error"]["param"]), (400, &json!("prompt")));
    assert!(
        error.text.contains("asks for 6 answers at once") && error.text.contains("at most 5"),
        "{}",
        error.text
    );
    assert_eq!(ask(1, 6).status, 400);
    assert_eq!(daemon.engine.requests().len(), asked);
}

#[test]
fn texts_of_a_bias_stand_for_each_of_their_tokens() {
    let daemon = Daemon::script(Script::Echo);
    let tokens = |text: &str| {
        let ids = daemon.post("/tokenize", &json!({"content": text, "parse_special": false})).ok()["tokens"]
            .clone();
        ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>()
    };
    let bias = json!([["one two", 1.5], [7, -1], ["three", false]]);
    daemon.post("/completion", &json!({"prompt": "x", "logit_bias": bias})).ok();
    let mut expected: Vec<(u32, f32)> = tokens("one two").into_iter().map(|id| (id, 1.5)).collect();
    expected.push((7, -1.0));
    expected.extend(tokens("three").into_iter().map(|id| (id, -100.0)));
    assert_eq!(expected.len(), 4);
    assert_eq!(daemon.engine.requests().last().unwrap().logit_bias, expected);
}

#[test]
fn llama_servers_clients_leave_v1_out() {
    let daemon = Daemon::script(Script::Text("one two".into()));
    let chat = json!({"messages": [{"role": "user", "content": "x y"}]});
    let answer = daemon.post("/chat/completions", &chat).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], "one two");
    for path in ["/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"] {
        assert_eq!(daemon.post(path, &chat).ok()["input_tokens"], 3, "{path}");
    }
    assert_eq!(daemon.get("/models").ok(), daemon.get("/v1/models").ok());
    let id = daemon.get("/v1/models").ok()["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(daemon.get(&format!("/models/{id}")).ok()["id"], id.as_str());
    assert_eq!(daemon.get("/v1/health").ok(), json!({"status": "ok"}));
    let input = json!({"input": "two words"});
    let vector = daemon.post("/embeddings", &input).ok()["data"][0]["embedding"].clone();
    assert_eq!(daemon.post("/v1/embeddings", &input).ok()["data"][0]["embedding"], vector);
    let own = json!([{"index": 0, "embedding": [vector]}]);
    assert_eq!(daemon.post("/embedding", &json!({"content": "two words"})).ok(), own);
    assert_eq!(daemon.post("/embedding", &json!({"content": "x", "embd_normalize": -1})).status, 400);
    // Errors have OpenAI's format there as well.
    let error = daemon.post("/chat/completions", &json!({"messages": []})).json()["error"].clone();
    assert_eq!((&error["param"], &error["code"]), (&json!("messages"), &Value::Null));
}

#[test]
fn the_post_may_have_further_names() {
    let daemon = Daemon::with(FakeEngine::new(Script::Echo), |settings| {
        settings.model.id = "small".into();
        settings.model.aliases = vec!["gpt-4".into()];
        settings.model.tags = vec!["chat".into()];
    });
    let model = daemon.get("/models").ok()["data"][0].clone();
    assert_eq!((&model["aliases"], &model["tags"]), (&json!(["gpt-4"]), &json!(["chat"])));
    assert_eq!(daemon.get("/v1/models/gpt-4").ok()["id"], "small");
    let status = |name: &str| daemon.chat("x", json!({"model": name})).status;
    assert_eq!((status("gpt-4"), status("small"), status("gpt-5")), (200, 200, 404));
}

#[test]
fn what_is_disabled_says_what_enables_it() {
    let daemon = Daemon::with(FakeEngine::new(Script::Echo), |settings| {
        settings.server.slots = false;
        settings.server.metrics = false;
    });
    for (path, setting) in [("/slots", "server.slots"), ("/metrics", "server.metrics")] {
        let answer = daemon.get(path);
        assert_eq!((answer.status, &answer.json()["error"]["type"]), (501, &json!("not_supported_error")));
        assert!(answer.text.contains(setting), "{}", answer.text);
    }
    let open = Daemon::script(Script::Echo).get("/metrics");
    assert!(open.header("process-start-time-unix").unwrap().parse::<u64>().unwrap() > 1_600_000_000);
}

#[test]
fn streams_tell_how_far_a_prompt_is_read() {
    let daemon = Daemon::script(Script::Text("one".into()));
    let fields = json!({
        "stream": true, "return_progress": true, "timings_per_token": true, "prompt": "x y",
        "messages": [{"role": "user", "content": "x y"}],
    });
    // A template adds a line break.
    for (path, without, tokens) in [
        ("/completion", "messages", 2),
        ("/v1/completions", "messages", 2),
        ("/chat/completions", "prompt", 3),
    ] {
        let mut body = fields.clone();
        body.as_object_mut().unwrap().remove(without);
        let chunks = crate::daemon::chunks(&daemon.post(path, &body).text);
        let read: Vec<&Value> = chunks.iter().filter(|chunk| chunk["prompt_progress"].is_object()).collect();
        assert_eq!(read.len(), 2, "{path}");
        assert_eq!(
            read[0]["prompt_progress"],
            json!({"total": tokens, "cache": 0, "processed": 0, "time_ms": 0.0})
        );
        assert_eq!(
            (&read[0]["timings"]["prompt_n"], &read[0]["timings"]["prompt_ms"]),
            (&json!(0), &json!(0.0))
        );
        assert_eq!(
            (&read[1]["prompt_progress"]["processed"], &read[1]["timings"]["prompt_n"]),
            (&json!(tokens), &json!(tokens))
        );
        body["return_progress"] = false.into();
        assert!(!daemon.post(path, &body).text.contains("prompt_progress"), "{path}");
    }
}

#[test]
fn a_client_may_ask_what_the_model_was_asked() {
    let daemon = Daemon::script(Script::Text("one".into()));
    let prompt = |fields: Value| daemon.chat("x y", fields).ok()["__verbose"]["prompt"].clone();
    assert_eq!((prompt(json!({"verbose": true})), prompt(json!({}))), ("x y\n\n".into(), Value::Null));
    let stream = crate::daemon::chunks(&daemon.chat("x", json!({"verbose": true, "stream": true})).text);
    assert!(stream.last().unwrap()["__verbose"]["generation_settings"].is_object());
}
