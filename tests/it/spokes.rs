//! Spokes: drop a file, ask for it by name, replace it, roll it back, delete it; over a scripted engine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bespoke::config::{Otherwise, Settings};
use bespoke::engine::{FakeEngine, Script};
use bespoke::spoke::Generation;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::{Answer, Daemon, chunks, read_until, wait_until};
use crate::dropped::{DIFFERS, SAME, child, felix, generation, lora, put};

/// A daemon whose engine tells which spokes it ran with, and its folders.
struct Served {
    daemon: Daemon,
    root: TempDir,
}

impl Served {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::over(FakeEngine::new(Script::Spokes(Duration::ZERO)), tempfile::tempdir().unwrap(), change)
    }

    fn over(engine: FakeEngine, root: TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        let script = child(root.path(), DIFFERS);
        let path = root.path().to_owned();
        let daemon = Daemon::with(engine, |settings| {
            settings.paths.state = path.join("state");
            settings.paths.spokes = path.join("spokes");
            settings.spokes.probe_program = script;
            settings.spokes.settle = Duration::from_millis(100);
            change(settings);
        });
        Self { daemon, root }
    }

    /// Stops the daemon and starts another over the same folders.
    fn restart(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        self.daemon.stop().0.unwrap();
        let engine = FakeEngine::new(Script::Spokes(Duration::ZERO));
        Self::over(engine, self.root, change)
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("spokes")
    }

    fn put(&self, entry: &str, content: &[u8]) -> Generation {
        put(&self.folder(), entry, content);
        generation(content)
    }

    /// Rows of a name.
    fn rows(&self, name: &str) -> Vec<Value> {
        let all = self.daemon.get("/v1/spokes").ok();
        let rows = all["data"].as_array().unwrap();
        rows.iter().filter(|row| row["name"] == name).cloned().collect()
    }

    /// The row of a name and a state, once there is one.
    fn row(&self, name: &str, state: &str) -> Value {
        let mut found = None;
        wait_until(&format!("{name} is {state}"), || {
            found = self.rows(name).into_iter().find(|row| row["state"] == state);
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits until a name is served by this content.
    fn serves(&self, name: &str, generation: Generation) {
        wait_until(&format!("{name} is {}", generation.short()), || {
            let rows = self.rows(name);
            rows.iter().any(|row| {
                row["state"] == "serving"
                    && row["generation"] == generation.to_string()
                    && row["id"].is_number()
            })
        });
    }

    fn ask(&self, fields: Value) -> Answer {
        self.daemon.chat("x", fields)
    }

    /// What the engine ran with.
    fn told(&self, fields: Value) -> String {
        self.ask(fields).content()
    }
}

/// What the engine says of one spoke at full scale.
fn alone(generation: Generation) -> String {
    format!("{}*1", generation.short())
}

fn message(answer: &Answer) -> String {
    answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_dropped_file_is_served_under_its_name() {
    let served = Served::new();
    assert_eq!(served.told(json!({"model": "encoding"})), "post", "nothing has this name yet");
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
    for model in [json!("bespoke-tiny"), json!("any"), json!("bespoke"), Value::Null] {
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
    let answer = served.ask(json!({"model": "bespoke:encodign"}));
    assert_eq!(answer.status, 404);
    let expected =
        "no model is named \"bespoke:encodign\"; this daemon serves \"bespoke-tiny\", \"encoding\"";
    assert_eq!(message(&answer), expected);
    std::fs::remove_file(served.folder().join("encoding.gguf")).unwrap();
    wait_until("it is gone", || served.rows("encoding").is_empty());
    let answer = served.ask(json!({"model": "encoding"}));
    assert_eq!(answer.status, 404, "{}", answer.text);
    assert!(message(&answer).contains("its file was deleted"), "{}", answer.text);
    assert_eq!(served.told(json!({"model": "gpt-4"})), "post");
    wait_until("its memory is freed", || served.daemon.engine.loaded().is_empty());
    // The same content again is the same generation again.
    served.put("encoding.gguf", &lora(1));
    served.serves("encoding", generation);
    assert_eq!(served.told(json!({"model": "encoding"})), alone(generation));
}

#[test]
fn the_meaning_of_names_that_are_not_there_can_be_configured() {
    let served = Served::with(|settings| {
        settings.spokes.unknown_model = Otherwise::Refuse;
        settings.spokes.retired = Otherwise::Post;
    });
    let generation = served.put("encoding.gguf", &lora(1));
    served.serves("encoding", generation);
    assert_eq!(served.ask(json!({"model": "any"})).status, 404);
    assert_eq!(served.told(json!({"model": "bespoke-tiny"})), "post");
    std::fs::remove_file(served.folder().join("encoding.gguf")).unwrap();
    wait_until("it is gone", || served.rows("encoding").is_empty());
    for model in ["encoding", "bespoke:encoding"] {
        assert_eq!(served.told(json!({"model": model})), "post");
    }
}

#[test]
fn a_running_request_ends_with_the_generation_that_it_began_with() {
    let slow = FakeEngine::new(Script::Spokes(Duration::from_millis(1_500)));
    let served = Served::over(slow, tempfile::tempdir().unwrap(), |_| {});
    let old = served.put("encoding.gguf", &lora(1));
    served.serves("encoding", old);
    let mut running = served.daemon.chat_connection(json!({"model": "encoding", "stream": true}));
    wait_until("it runs", || served.daemon.engine.running() == 1);
    let new = served.put("encoding.gguf", &lora(2));
    served.serves("encoding", new);
    assert_eq!(served.daemon.engine.running(), 1, "the swap came in the middle of the request");
    assert_eq!(served.daemon.engine.loaded().len(), 2);
    served.daemon.engine.set_script(Script::Spokes(Duration::ZERO));
    assert_eq!(served.told(json!({"model": "encoding"})), alone(new));
    let stream = read_until(&mut running, "[DONE]");
    assert!(stream.contains(&alone(old)) && !stream.contains(&alone(new)), "{stream}");
    wait_until("the old one is freed", || served.daemon.engine.loaded() == [new]);
}

#[test]
fn a_bad_file_leaves_the_old_generation_serving_and_is_kept_with_its_reason() {
    let served = Served::new();
    let good = served.put("encoding.gguf", &lora(1));
    served.serves("encoding", good);
    let bad = served.put("encoding.gguf", &lora(2)[..1_000]);
    let row = served.row("encoding", "quarantined");
    assert_eq!(row["generation"], json!(bad));
    assert!(row["reason"]["code"].is_string() && row["reason"]["message"].is_string(), "{row}");
    assert_eq!(served.told(json!({"model": "encoding"})), alone(good));
    let states: Vec<Value> = served.rows("encoding").iter().map(|row| row["state"].clone()).collect();
    assert_eq!(states, ["serving", "quarantined"]);
    let kept = served
        .root
        .path()
        .join("state/spokes/quarantine")
        .join(format!("encoding-{}", &bad.to_string()[..8]));
    let mut reason = String::new();
    wait_until("the reason is written", || {
        reason = std::fs::read_to_string(kept.join("reason.json")).unwrap_or_default();
        !reason.is_empty()
    });
    let reason: Value = serde_json::from_str(&reason).unwrap();
    assert_eq!((&reason["generation"], &reason["entry"]), (&json!(bad), &json!("encoding.gguf")));
    assert_eq!(std::fs::read(kept.join("spoke")).unwrap(), lora(2)[..1_000]);
    assert!(served.folder().join("encoding.gguf").exists(), "what was dropped stays where it was dropped");
    // A better one takes over from both.
    let better = served.put("encoding.gguf", &lora(3));
    served.serves("encoding", better);
    assert_eq!(served.rows("encoding").len(), 1);
}

#[test]
fn refused_files_can_be_taken_out_of_the_folder() {
    let served = Served::with(|settings| settings.spokes.move_refused = true);
    served.put("bad.gguf", &lora(2)[..1_000]);
    wait_until("it is taken out", || !served.folder().join("bad.gguf").exists());
    let kept = served.root.path().join("state/spokes/quarantine");
    assert_eq!(std::fs::read_dir(kept).unwrap().count(), 1);
}

#[test]
fn what_a_probe_finds_decides() {
    for (script, state, code) in [
        (SAME, "inert", None),
        ("echo '[load] GGML_ASSERT failed' >&2; kill -ABRT $$", "quarantined", Some("probe_died")),
        ("exec sleep 60", "quarantined", Some("probe_too_slow")),
        (
            r#"echo '{"verdict":"refused","finite":false,"differs":true,"tokens":1,"resident_bytes":0,"why":{"code":"not_finite","message":"NaN"}}'"#,
            "quarantined",
            Some("not_finite"),
        ),
    ] {
        let root = tempfile::tempdir().unwrap();
        let engine = FakeEngine::new(Script::Spokes(Duration::ZERO));
        let served = Served::over(engine, root, |settings| {
            let folder = settings.paths.state.parent().unwrap().join("children");
            settings.spokes.probe_program = child(&folder, script);
            settings.spokes.probe_limit = Duration::from_millis(500);
        });
        served.put("a.gguf", &lora(1));
        let row = served.row("a", state);
        assert_eq!(row["reason"]["code"].as_str(), code, "{row}");
        assert!(served.daemon.engine.loaded().is_empty(), "it is never loaded");
        let answer = served.ask(json!({"model": "a"}));
        assert_eq!(answer.status, 404, "{}", answer.text);
        assert!(message(&answer).contains(state), "{}", answer.text);
    }
}

#[test]
fn rolling_back_goes_one_generation_further_each_time() {
    let served = Served::new();
    let all: Vec<Generation> = (1..=3)
        .map(|seed| {
            let generation = served.put("encoding.gguf", &lora(seed));
            served.serves("encoding", generation);
            generation
        })
        .collect();
    let back = |verb: &str| served.daemon.post(&format!("/v1/spokes/encoding:{verb}"), &json!({}));
    assert_eq!(served.row("encoding", "serving")["before"], json!([all[0], all[1]]));
    let row = back("rollback").ok();
    assert_eq!((&row["generation"], &row["state"]), (&json!(all[1]), &json!("serving")));
    assert_eq!(served.told(json!({"model": "encoding"})), alone(all[1]));
    let newest = served.row("encoding", "retired");
    assert_eq!((&newest["generation"], &newest["reason"]["code"]), (&json!(all[2]), &json!("rolled_back")));
    assert_eq!(back("rollback").ok()["generation"], json!(all[0]));
    let none = back("rollback");
    assert_eq!(none.status, 409, "{}", none.text);
    assert_eq!(served.told(json!({"model": "encoding"})), alone(all[0]));
    // A restart changes nothing about it.
    let served = served.restart(|_| {});
    assert_eq!(served.told(json!({"model": "encoding"})), alone(all[0]));
    served.row("encoding", "retired");
    // The file is still there; it serves again when somebody says so.
    let back = |verb: &str| served.daemon.post(&format!("/v1/spokes/encoding:{verb}"), &json!({}));
    assert_eq!(back("enable").ok()["generation"], json!(all[2]));
    assert_eq!(served.told(json!({"model": "encoding"})), alone(all[2]));
    wait_until("the others are freed", || served.daemon.engine.loaded() == [all[2]]);
}

#[test]
fn a_name_can_be_switched_off_and_on_and_stays_so() {
    let served = Served::new();
    let generation = served.put("encoding.gguf", &lora(1));
    served.serves("encoding", generation);
    let change =
        |served: &Served, verb: &str| served.daemon.post(&format!("/v1/spokes/encoding:{verb}"), &json!({}));
    assert_eq!(change(&served, "disable").ok()["reason"]["code"], "disabled");
    assert_eq!(served.ask(json!({"model": "encoding"})).status, 404);
    assert_eq!(change(&served, "disable").status, 409);
    // Another content waits until it is switched on.
    let newer = served.put("encoding.gguf", &lora(2));
    wait_until("it is known", || served.rows("encoding").iter().any(|row| row["generation"] == json!(newer)));
    served.row("encoding", "retired");
    let served = served.restart(|_| {});
    served.row("encoding", "retired");
    assert_eq!(served.ask(json!({"model": "encoding"})).status, 404);
    assert_eq!(change(&served, "enable").ok()["generation"], json!(newer));
    assert_eq!(served.told(json!({"model": "encoding"})), alone(newer));
    assert_eq!(change(&served, "enable").status, 409);
    for path in [
        "/v1/spokes/nobody:enable",
        "/v1/spokes/nobody:disable",
        "/v1/spokes/nobody:rollback",
        "/v1/spokes/encoding:dance",
        "/v1/spokes/encoding",
    ] {
        assert_eq!(served.daemon.post(path, &json!({})).status, 404, "{path}");
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
    let twice = served.ask(json!({"lora": [{"id": "a"}, {"id": ids[0]}]}));
    assert_eq!(twice.status, 400, "{}", twice.text);
    assert_ne!(f, g);
}

#[test]
fn the_task_chooses_then_the_default_then_nothing() {
    let served = Served::with(|settings| {
        settings.spokes.tasks = [("encoding_response".to_owned(), "encoding".to_owned())].into();
        settings.spokes.default = Some("chat".to_owned());
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
    assert_eq!(used(json!({"model": "whatever mnemonic sends"})).as_deref(), Some("chat"));
    // What is named outright wins over the task.
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

#[test]
fn vllms_routes_load_a_path_and_it_is_there_after_a_restart() {
    let served = Served::new();
    let path = served.root.path().join("elsewhere.gguf");
    let first = lora(1);
    put(served.root.path(), "elsewhere.gguf", &first);
    let load = |served: &Served, fields: Value| {
        let mut body = json!({"lora_name": "given", "lora_path": path});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        served.daemon.post("/v1/load_lora_adapter", &body)
    };
    let answer = load(&served, json!({}));
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (200, "Success: LoRA adapter 'given' added successfully.")
    );
    assert_eq!(served.told(json!({"model": "given"})), alone(generation(&first)));
    assert_eq!(load(&served, json!({})).status, 409);
    let second = lora(2);
    put(served.root.path(), "elsewhere.gguf", &second);
    assert_eq!(load(&served, json!({"load_inplace": true})).status, 200);
    assert_eq!(served.told(json!({"model": "given"})), alone(generation(&second)));

    for (fields, word) in [
        (json!({"lora_name": "x", "lora_path": "/nowhere/x.gguf"}), "not_found"),
        (json!({"lora_name": "a b"}), "bad_name"),
        (json!({"lora_name": "bespoke-tiny"}), "name_taken"),
        (json!({"lora_name": "x", "lora_path": "relative"}), "absolute"),
    ] {
        let refused = load(&served, fields.clone());
        assert_eq!(refused.status, 400, "{fields}: {}", refused.text);
        assert!(refused.text.contains(word), "{fields}: {}", refused.text);
    }
    std::fs::remove_file(&path).unwrap();
    let served = served.restart(|_| {});
    served.serves("given", generation(&second));
    assert_eq!(served.told(json!({"model": "given"})), alone(generation(&second)));
    let unload = |name: &str| served.daemon.post("/v1/unload_lora_adapter", &json!({"lora_name": name}));
    assert_eq!(unload("given").status, 200);
    assert_eq!(served.ask(json!({"model": "given"})).status, 404);
    assert_eq!(unload("given").status, 404);
    // One that came by the folder is switched off: its file is not ours.
    let dropped = served.put("dropped.gguf", &lora(3));
    served.serves("dropped", dropped);
    assert_eq!(unload("dropped").status, 200);
    assert_eq!(served.row("dropped", "retired")["reason"]["code"], "disabled");
    assert!(served.folder().join("dropped.gguf").exists());
}

#[test]
fn spokes_make_room_for_each_other_and_come_back_when_they_are_asked_for() {
    let size = lora(1).len() as u64;
    let served = Served::with(|settings| settings.spokes.memory = bytesize::ByteSize(size * 5 / 2));
    let all = ["a", "b", "c"].map(|name| {
        let generation = served.put(&format!("{name}.gguf"), &lora(u32::from(name.as_bytes()[0])));
        served.serves(name, generation);
        generation
    });
    assert!(served.daemon.engine.loaded().len() <= 2);
    for round in 0..3 {
        for (name, generation) in ["a", "b", "c"].iter().zip(all) {
            assert_eq!(served.told(json!({"model": name})), alone(generation), "{round}");
            wait_until("no more than fit are there", || served.daemon.engine.loaded().len() <= 2);
        }
    }
    let metrics = served.daemon.get("/metrics").text;
    let evictions = metrics.lines().find(|line| line.starts_with("bespoke_spoke_evictions_total ")).unwrap();
    assert!(evictions.rsplit(' ').next().unwrap().parse::<u32>().unwrap() >= 3, "{evictions}");
    // Three at once are too many, whatever goes.
    let three = served.ask(json!({"lora": [{"id": "a"}, {"id": "b"}, {"id": "c"}]}));
    assert_eq!(three.status, 400, "{}", three.text);
    assert!(message(&three).contains("bytes in memory"), "{}", three.text);
}

#[test]
fn a_spoke_that_can_never_fit_is_refused_with_the_numbers() {
    let served = Served::with(|settings| settings.spokes.memory = bytesize::ByteSize(100));
    served.put("a.gguf", &lora(1));
    let why = served.row("a", "quarantined")["reason"]["message"].as_str().unwrap().to_owned();
    assert!(why.contains("100"), "{why}");
}

#[test]
fn a_restart_serves_what_served_without_a_probe_and_forgets_what_was_deleted_meanwhile() {
    let served = Served::new();
    let kept = served.put("kept.gguf", &lora(1));
    let gone = served.put("gone.gguf", &lora(2));
    let changed = served.put("changed.gguf", &lora(3));
    served.serves("kept", kept);
    served.serves("gone", gone);
    served.serves("changed", changed);
    served.put("bad.gguf", b"GGUF");
    served.row("bad", "quarantined");
    let Served { mut daemon, root } = served;
    daemon.stop().0.unwrap();
    let folder = root.path().join("spokes");
    std::fs::remove_file(folder.join("gone.gguf")).unwrap();
    put(&folder, "changed.gguf", &lora(4));
    let count = root.path().join("count");
    let script = format!("echo x >> {}; {DIFFERS}", count.display());
    let engine = FakeEngine::new(Script::Spokes(Duration::ZERO));
    let children = root.path().join("children");
    let served = Served::over(engine, root, |settings| {
        settings.spokes.probe_program = child(&children, &script);
    });
    assert_eq!(served.told(json!({"model": "kept"})), alone(kept), "at once");
    assert_eq!(served.row("bad", "quarantined")["file"], "bad.gguf");
    served.serves("changed", generation(&lora(4)));
    wait_until("the deleted one is gone", || served.rows("gone").is_empty());
    assert_eq!(served.ask(json!({"model": "gone"})).status, 404);
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n", "only the new content was probed");
    assert_eq!(served.row("changed", "serving")["before"], json!([changed]));
}

#[test]
fn transitions_are_told_as_they_happen_and_from_the_journal() {
    let served = Served::new();
    let mut live = served.daemon.connection();
    std::io::Write::write_all(&mut live, b"GET /v1/spokes/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    read_until(&mut live, "text/event-stream");
    let generation = served.put("a.gguf", &lora(1));
    let told = read_until(&mut live, "\"to\":\"serving\"");
    let states = ["seen", "settled", "inspected", "probed", "gated", "serving"];
    let mut at = 0;
    for state in states {
        let place =
            told[at..].find(&format!("\"to\":\"{state}\"")).unwrap_or_else(|| panic!("{state}: {told}"));
        at += place;
    }
    assert!(told.contains(&generation.to_string()) && told.contains("event: transition"), "{told}");
    let mut journal = served.daemon.connection();
    std::io::Write::write_all(
        &mut journal,
        b"GET /v1/spokes/events HTTP/1.1\r\nhost: localhost\r\nlast-event-id: 3\r\n\r\n",
    )
    .unwrap();
    let told = read_until(&mut journal, "\"to\":\"serving\"");
    assert!(told.contains("id: 4") && !told.contains("id: 3\n"), "{told}");
    assert_eq!(served.daemon.get("/v1/spokes/events?after=x").status, 400);
    let metrics = served.daemon.get("/metrics").text;
    for line in [
        "bespoke_spoke_transitions_total{to=\"serving\"} 1",
        "bespoke_spokes{state=\"serving\"} 1",
        "bespoke_spoke_swaps_total 1",
        "bespoke_spoke_folder_readable 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in:\n{metrics}");
    }
    // A stream of news must not keep the daemon from stopping.
    let mut served = served;
    let (ended, took) = served.daemon.stop();
    assert!(ended.is_ok() && took < Duration::from_secs(5), "{ended:?} after {took:?}");
}

#[test]
fn a_name_belongs_to_one_file() {
    let served = Served::new();
    let first = served.put("a.gguf", &lora(1));
    served.serves("a", first);
    let second = served.put("a.zip", &lora(2));
    assert_eq!(served.row("a", "quarantined")["reason"]["code"], "name_taken");
    served.put("bespoke-tiny.gguf", &lora(3));
    assert_eq!(served.row("bespoke-tiny", "quarantined")["reason"]["code"], "name_taken");
    served.put("two words.gguf", &lora(3));
    assert_eq!(served.row("two words.gguf", "quarantined")["reason"]["code"], "bad_name");
    std::fs::remove_file(served.folder().join("a.gguf")).unwrap();
    served.serves("a", second);
    assert_eq!(served.told(json!({"model": "a"})), alone(second));
}

#[test]
fn a_file_that_is_written_slowly_is_read_once_it_is_whole() {
    let served = Served::new();
    let content = lora(1);
    let path = served.folder().join("slow.gguf");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    for part in content.chunks(content.len() / 8 + 1) {
        std::io::Write::write_all(&mut file, part).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(served.rows("slow").iter().all(|row| row["state"] == "seen"), "{:?}", served.rows("slow"));
    }
    served.serves("slow", generation(&content));
}

#[test]
fn a_folder_that_can_not_be_read_takes_nothing_out_of_service() {
    let served = Served::with(|settings| {
        settings.spokes.events = false;
        settings.spokes.poll = Duration::from_millis(100);
    });
    let generation = served.put("a.gguf", &lora(1));
    served.serves("a", generation);
    let away = served.root.path().join("away");
    std::fs::rename(served.folder(), &away).unwrap();
    wait_until("it is noticed", || {
        served.daemon.get("/metrics").text.contains("bespoke_spoke_folder_readable 0")
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(served.told(json!({"model": "a"})), alone(generation));
    std::fs::rename(&away, served.folder()).unwrap();
    let new = served.put("a.gguf", &lora(2));
    served.serves("a", new);
}

#[test]
fn polling_finds_what_the_system_does_not_tell() {
    let served = Served::with(|settings| {
        settings.spokes.events = false;
        settings.spokes.poll = Duration::from_millis(100);
    });
    let generation = served.put("a.gguf", &lora(1));
    served.serves("a", generation);
    std::fs::remove_file(served.folder().join("a.gguf")).unwrap();
    wait_until("it is gone", || served.rows("a").is_empty());
}

#[test]
fn a_flood_of_files_is_taken_in_turns_and_requests_are_answered_meanwhile() {
    let served = Served::with(|settings| settings.spokes.most = 50);
    let generation = served.put("wanted.gguf", &lora(1));
    served.serves("wanted", generation);
    for n in 0..3_000 {
        std::os::unix::fs::symlink("/nowhere", served.folder().join(format!("junk{n:04}.gguf"))).unwrap();
    }
    let took = std::time::Instant::now();
    assert_eq!(served.told(json!({"model": "wanted"})), alone(generation));
    assert!(took.elapsed() < Duration::from_secs(5), "{:?}", took.elapsed());
    let count = |code: &str| {
        let all = served.daemon.get("/v1/spokes").ok();
        all["data"].as_array().unwrap().iter().filter(|row| row["reason"]["code"] == code).count()
    };
    wait_until("all of them have been looked at", || count("symlink") == 49 && count("too_many") == 2_951);
    // What serves is found to be changed before its turn would come.
    let newer = served.put("wanted.gguf", &lora(2));
    served.serves("wanted", newer);
}

#[test]
fn a_gate_keeps_the_old_generation_where_the_new_one_is_worse() {
    let root = tempfile::tempdir().unwrap();
    let probes = root.path().join("probes.jsonl");
    bespoke::durable::write(&probes, b"{\"id\": 1, \"raw_input\": \"Ana Lu saw 12 rows in db/x.sql\"}\n")
        .unwrap();
    let engine =
        FakeEngine::new(Script::Text("{\"content\": \"Ana Lu saw 12 rows in db/x.sql\"}".to_owned()));
    let served = Served::over(engine, root, |settings| {
        let gate = bespoke::config::GateSettings {
            probes,
            epr: Some(0.9),
            np: None,
            sc: None,
            fr: None,
            limit: Duration::from_secs(30),
        };
        settings.spokes.gates = [("encoding".to_owned(), gate)].into();
    });
    let good = served.put("encoding.gguf", &lora(1));
    served.serves("encoding", good);
    let asked = served.daemon.engine.requests();
    assert_eq!(asked.last().unwrap().spokes[0].generation, good, "the gate asks with the candidate");
    served.daemon.engine.set_script(Script::Text("{\"content\": \"Somebody saw something\"}".to_owned()));
    served.put("encoding.gguf", &lora(2));
    let row = served.row("encoding", "quarantined");
    assert_eq!(row["reason"]["code"], "gate");
    assert!(
        row["reason"]["message"].as_str().unwrap().contains("EPR is 0.000, expected at least 0.9"),
        "{row}"
    );
    served.serves("encoding", good);
    wait_until("the refused one is freed", || served.daemon.engine.loaded() == [good]);
}

#[test]
fn changes_need_an_admins_key() {
    let root = tempfile::tempdir().unwrap();
    let keys = root.path().join("keys");
    bespoke::durable::write(&keys, b"inference-key-0123456789\nadmin:admin-key-0123456789\n").unwrap();
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let engine = FakeEngine::new(Script::Echo);
    let served = Served::over(engine, root, |settings| settings.server.keys_file = Some(keys));
    let post = |path: &str, key: &str| {
        served
            .daemon
            .post_with(path, &[("x-api-key", key), ("content-type", "application/json")], "{}")
            .status
    };
    for path in
        ["/v1/spokes/a:rollback", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/lora-adapters"]
    {
        assert_eq!(post(path, "inference-key-0123456789"), 403, "{path}");
        assert!(matches!(post(path, "admin-key-0123456789"), 400 | 404), "{path}");
    }
    let list = served.daemon.get_with("/v1/spokes", &[("x-api-key", "inference-key-0123456789")]);
    assert_eq!(list.status, 200);
}

#[test]
fn one_state_folder_has_one_daemon() {
    let served = Served::new();
    let state = served.root.path().join("state");
    let mut settings = bespoke::config::load(None, bespoke::config::Overrides::default()).unwrap();
    settings.server.listen = "127.0.0.1:0".parse().unwrap();
    settings.paths.state = state.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let engine = std::sync::Arc::new(FakeEngine::new(Script::Echo));
    let error = bespoke::hub::Hub::assemble(&settings, engine).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("another daemon") && error.contains("hint: "), "{error}");
    assert!(Path::new(&state).exists());
}
