//! Tests of how a request's spoke is chosen (by name, number, task or default), and of the error if
//! there is none.

use bespoke::adapter::Generation;
use bespoke::config::Otherwise;
use serde_json::{Value, json};

use super::{Served, alone, message};
use crate::daemon::{chunks, wait_until};
use crate::dropped::{felix, lora};

#[test]
fn a_dropped_file_is_served_under_its_name() {
    let served = Served::new();
    assert_eq!(served.ask(json!({"model": "encoding"})).status, 404, "nothing has this name yet");
    let content = lora(1);
    let generation = served.put("encoding.gguf", &content);
    served.serves("encoding", generation);

    for model in ["encoding", "bespoke:encoding", "bespoke-tiny:encoding"] {
        let answer = served.ask(json!({"model": model}));
        assert_eq!(answer.content(), alone(generation), "{model}");
        let used = json!([{"name": "encoding", "generation": generation, "scale": 1.0}]);
        assert_eq!(answer.ok()["spokes"], used);
        let header = answer.header("x-bespoke-spokes").unwrap();
        assert_eq!(header, format!("encoding@{}*1", generation.short()));
    }
    for model in [json!("bespoke-tiny"), json!("bespoke"), json!(""), Value::Null] {
        let answer = served.ask(json!({"model": model}));
        assert_eq!((answer.content().as_str(), answer.header("x-bespoke-spokes")), ("post", None), "{model}");
        assert!(answer.ok().get("spokes").is_none());
    }
    let row = served.row("encoding", "serving");
    assert_eq!((&row["kind"], &row["rank"], &row["uses"]), (&json!("lora"), &json!(4), &json!(3)));
    assert_eq!((&row["bytes"], &row["file"]), (&json!(content.len()), &json!("encoding.gguf")));
    assert!(row["last_used"].is_number());

    let models = served.daemon.get("/v1/models").ok();
    let ids: Vec<&Value> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["bespoke-tiny", "encoding"]);
    assert_eq!(models["data"][1]["parent"], "bespoke-tiny");
    assert_eq!(
        served.daemon.get("/v1/models/bespoke:encoding").ok()["meta"]["generation"],
        json!(generation)
    );

    let stream = served.ask(json!({"model": "encoding", "stream": true}));
    assert!(stream.header("x-bespoke-spokes").is_some());
    assert!(chunks(&stream.text).iter().all(|chunk| chunk["spokes"][0]["name"] == "encoding"));
    for path in ["/v1/completions", "/completion"] {
        let answer = served.daemon.post(path, &json!({"prompt": "x", "model": "encoding"}));
        assert_eq!(answer.ok()["spokes"][0]["generation"], json!(generation), "{path}");
    }
}

#[test]
fn names_that_are_not_there_are_a_404_that_lists_what_is() {
    let served = Served::new();
    let generation = served.put("encoding.gguf", &lora(1));
    served.serves("encoding", generation);
    for model in ["bespoke:encodign", "encodign", "gpt-4"] {
        let answer = served.ask(json!({"model": model}));
        assert_eq!(answer.status, 404);
        let expected =
            format!("no model is named {model:?}; this daemon serves \"bespoke-tiny\", \"encoding\"");
        assert_eq!(message(&answer), expected);
    }
    std::fs::remove_file(served.folder().join("encoding.gguf")).unwrap();
    wait_until("it is gone", || served.rows("encoding").is_empty());
    let answer = served.ask(json!({"model": "encoding"}));
    assert_eq!(answer.status, 404, "{}", answer.text);
    assert!(message(&answer).contains("its file was deleted"), "{}", answer.text);
    wait_until("its memory is freed", || served.daemon.engine.loaded().is_empty());
    // Equal contents are the same generation.
    served.put("encoding.gguf", &lora(1));
    served.serves("encoding", generation);
    assert_eq!(served.told(json!({"model": "encoding"})), alone(generation));
}

#[test]
fn the_meaning_of_names_that_are_not_there_can_be_configured() {
    let served = Served::with(|settings| {
        settings.spokes.choice.unknown_model = Otherwise::Post;
        settings.spokes.choice.retired = Otherwise::Post;
    });
    let generation = served.put("encoding.gguf", &lora(1));
    served.serves("encoding", generation);
    for model in ["any", "gpt-4", "bespoke-tiny"] {
        assert_eq!(served.told(json!({"model": model})), "post");
    }
    assert_eq!(served.ask(json!({"model": "bespoke:any"})).status, 404, "a spoke, and no other thing");
    std::fs::remove_file(served.folder().join("encoding.gguf")).unwrap();
    wait_until("it is gone", || served.rows("encoding").is_empty());
    for model in ["encoding", "bespoke:encoding"] {
        assert_eq!(served.told(json!({"model": model})), "post");
    }
}

#[test]
fn a_request_may_name_several_loras_with_scales_and_one_felix_spoke() {
    let served = Served::new();
    let [a, b] = [("a.gguf", lora(1)), ("b.gguf", lora(2))].map(|(entry, content)| {
        let generation = served.put(entry, &content);
        served.serves(&entry[..1], generation);
        generation
    });
    let [f, g] = [("f.gguf", felix(1)), ("g.gguf", felix(2))].map(|(entry, content)| {
        let generation = served.put(entry, &content);
        served.serves(&entry[..1], generation);
        generation
    });
    let told = |spokes: &mut [(Generation, f32)]| {
        spokes.sort_by_key(|(generation, _)| *generation);
        let spoke = |(generation, scale): &(Generation, f32)| format!("{}*{scale}", generation.short());
        spokes.iter().map(spoke).collect::<Vec<_>>().join(" ")
    };
    let id = |name: &str| served.row(name, "serving")["id"].clone();
    let ids = [id("a"), id("b"), id("f")];
    let lora = json!([{"id": ids[0], "scale": 0.5}, {"id": ids[1], "scale": 2}, {"id": ids[2]}]);
    assert_eq!(served.told(json!({"lora": lora})), told(&mut [(a, 0.5), (b, 2.0), (f, 1.0)]));
    let named = json!({"model": "a", "lora": [{"id": "f", "scale": 0.25}]});
    assert_eq!(served.told(named), told(&mut [(a, 1.0), (f, 0.25)]));
    assert_eq!(served.told(json!({"model": "a", "lora": [{"id": "a", "scale": 3}]})), told(&mut [(a, 3.0)]));
    assert_eq!(served.told(json!({"lora": []})), "post");
    assert_eq!(served.told(json!({"lora": [{"id": "a", "scale": 0}]})), "post");

    let two = served.ask(json!({"lora": [{"id": "f"}, {"id": "g"}]}));
    assert_eq!((two.status, two.json()["error"]["param"].as_str()), (400, Some("lora")));
    assert!(message(&two).contains("f and g are Felix spokes"), "{}", two.text);
    let nobody = served.ask(json!({"lora": [{"id": 99}]}));
    assert_eq!((nobody.status, nobody.json()["error"]["param"].as_str()), (400, Some("lora[0].id")));
    assert!(message(&nobody).contains("no adapter has the id 99; there are 0 (a), 1 (b)"), "{}", nobody.text);
    let nobody = served.ask(json!({"lora": [{"id": "aa"}]}));
    assert_eq!(nobody.status, 404);
    assert!(
        message(&nobody).contains("\"aa\"; this daemon serves \"bespoke-tiny\", \"a\", \"b\""),
        "{}",
        nobody.text
    );
    let twice = served.ask(json!({"lora": [{"id": "a"}, {"id": ids[0]}]}));
    assert_eq!(twice.status, 400, "{}", twice.text);
    assert_ne!(f, g);
}

#[test]
fn the_task_chooses_then_the_default_then_nothing() {
    let served = Served::with(|settings| {
        settings.spokes.choice.tasks = [("encoding_response".to_owned(), "encoding".to_owned())].into();
        settings.spokes.choice.default = Some("chat".to_owned());
    });
    let format = |name: &str| json!({"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": {}}}});
    let used = |fields: Value| {
        let answer = served.ask(fields);
        answer.ok().get("spokes").map(|spokes| spokes[0]["name"].as_str().unwrap().to_owned())
    };
    assert_eq!(used(format("encoding_response")), None, "neither is there yet");
    let chat = served.put("chat.gguf", &lora(1));
    served.serves("chat", chat);
    assert_eq!(used(format("encoding_response")).as_deref(), Some("chat"));
    let encoding = served.put("encoding.gguf", &lora(2));
    served.serves("encoding", encoding);
    assert_eq!(used(format("encoding_response")).as_deref(), Some("encoding"));
    assert_eq!(used(format("gate_response")).as_deref(), Some("chat"));
    assert_eq!(used(json!({"model": "bespoke"})).as_deref(), Some("chat"));
    // An explicit name takes precedence over the task.
    let mut named = format("encoding_response");
    named["model"] = json!("chat");
    assert_eq!(used(named).as_deref(), Some("chat"));
    assert_eq!(used(json!({"lora": []})), None);
}

#[test]
fn llama_servers_routes_list_adapters_and_set_what_requests_get_that_choose_none() {
    let served = Served::new();
    let [a, b] = [("a.gguf", lora(1)), ("b.gguf", lora(2))].map(|(entry, content)| {
        let generation = served.put(entry, &content);
        served.serves(&entry[..1], generation);
        generation
    });
    let list = served.daemon.get("/lora-adapters").ok();
    let expected = json!([
        {"id": 0, "path": "a", "scale": 0.0, "generation": a}, {"id": 1, "path": "b", "scale": 0.0, "generation": b}
    ]);
    assert_eq!(list, expected);
    let set = |body: Value| served.daemon.post("/lora-adapters", &body);
    assert_eq!(set(json!([{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.5}])).ok(), json!({"success": true}));
    assert_eq!(served.told(json!({})), format!("{}*0.5", b.short()));
    assert_eq!(served.daemon.get("/lora-adapters").ok()[1]["scale"], 0.5);
    assert_eq!(served.told(json!({"model": "a"})), alone(a));
    assert_eq!(set(json!([])).ok(), json!({"success": true}));
    assert_eq!(served.told(json!({})), "post");
    assert_eq!(set(json!([{"id": 7}])).status, 400);
}
