//! Tests of manual operations on spokes: rollback, disabling, loading by request, memory limits,
//! and permissions.

use std::collections::BTreeSet;
use std::path::Path;

use bespoke::adapter::Generation;
use bespoke::engine::{FakeEngine, Script};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Served, alone, message};
use crate::daemon::wait_until;
use crate::dropped::{DIFFERS, child, generation, lora, put};

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
    // A restart doesn't change that.
    let served = served.restart(|_| {});
    assert_eq!(served.told(json!({"model": "encoding"})), alone(all[0]));
    let since = served.row("encoding", "retired")["since"].as_f64();
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    // Neither does touching the file, nor re-examining its content.
    let file = std::fs::File::options().append(true).open(served.folder().join("encoding.gguf")).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    wait_until("it was looked at again", || {
        served.rows("encoding").iter().any(|row| row["state"] == "retired" && row["since"].as_f64() > since)
    });
    let served = served.restart(|settings| settings.spokes.probe = false);
    served.serves("encoding", all[0]);
    assert_eq!(served.row("encoding", "retired")["reason"]["code"], "rolled_back");
    assert_eq!(served.told(json!({"model": "encoding"})), alone(all[0]));
    // The file is still there, and serves again once it is enabled.
    let back = |verb: &str| served.daemon.post(&format!("/v1/spokes/encoding:{verb}"), &json!({}));
    assert_eq!(back("enable").ok()["generation"], json!(all[2]));
    assert_eq!(served.told(json!({"model": "encoding"})), alone(all[2]));
    wait_until("the others are freed", || served.daemon.engine.loaded() == [all[2]]);
}

#[test]
fn the_last_three_generations_are_kept_and_no_more() {
    let served = Served::new();
    let all: Vec<Generation> = (1..=6)
        .map(|seed| {
            let generation = served.put("encoding.gguf", &lora(seed));
            served.serves("encoding", generation);
            generation
        })
        .collect();
    assert_eq!(served.row("encoding", "serving")["before"], json!(all[2..5]));
    // No other contents remain on disk.
    let staged = served.root.path().join("state/spokes/staged");
    let there = || {
        let names = std::fs::read_dir(&staged).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.to_str()?.parse().ok()).collect::<BTreeSet<Generation>>()
    };
    wait_until("older copies are swept", || there() == all[2..].iter().copied().collect());
    // They are also what exists after a restart.
    let served = served.restart(|_| {});
    for generation in all[2..5].iter().rev() {
        let row = served.daemon.post("/v1/spokes/encoding:rollback", &json!({})).ok();
        assert_eq!(row["generation"], json!(generation));
        assert_eq!(served.told(json!({"model": "encoding"})), alone(*generation));
    }
    let none = served.daemon.post("/v1/spokes/encoding:rollback", &json!({}));
    assert_eq!(none.status, 409, "{}", none.text);
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
    // Another content waits until the name is enabled.
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
    // Its file was not put there by the daemon and was not deleted; a restart doesn't change that.
    let asked = served.ask(json!({"model": "given"}));
    assert!(asked.status == 404 && message(&asked).contains("it was unloaded by request"), "{}", asked.text);
    assert_eq!(unload("given").status, 404);
    let served = served.restart(|_| {});
    let asked = served.ask(json!({"model": "given"}));
    assert!(asked.status == 404 && message(&asked).contains("it was unloaded by request"), "{}", asked.text);
    let unload = |name: &str| served.daemon.post("/v1/unload_lora_adapter", &json!({"lora_name": name}));
    // A spoke from the folder is only disabled, because the daemon doesn't own its file.
    let dropped = served.put("dropped.gguf", &lora(3));
    served.serves("dropped", dropped);
    assert_eq!(unload("dropped").status, 200);
    assert_eq!(served.row("dropped", "retired")["reason"]["code"], "disabled");
    assert!(served.folder().join("dropped.gguf").exists());
}

#[test]
fn what_is_switched_off_before_it_was_found_good_is_found_good_first_when_it_is_switched_on() {
    // Loading the file that kills this child would also kill the daemon.
    let served = Served::with(|settings| {
        let folder = settings.paths.state.parent().unwrap().join("children");
        settings.spokes.probe_program = child(&folder, "sleep 1; kill -SEGV $$");
        settings.spokes.settle = std::time::Duration::from_secs(3);
    });
    let change = |verb: &str| served.daemon.post(&format!("/v1/spokes/a:{verb}"), &json!({}));
    // While it is open for writing, the file is not considered complete.
    let path = served.folder().join("a.gguf");
    let mut open = std::fs::File::options().write(true).create_new(true).open(path).unwrap();
    std::io::Write::write_all(&mut open, &lora(1)).unwrap();
    for state in ["seen", "inspected"] {
        served.row("a", state);
        assert_eq!(change("disable").ok()["state"], "retired", "{state}");
        let enabled = change("enable");
        assert!(enabled.status == 400 && enabled.text.contains("probe_died"), "{state}: {}", enabled.text);
        assert_eq!(served.row("a", "quarantined")["reason"]["code"], "probe_died", "{state}");
        assert!(served.daemon.engine.loaded().is_empty(), "{state}");
        served.put("a.gguf", &lora(2));
    }
    drop(open);
    // The reconciler is alive.
    assert_eq!(served.row("a", "quarantined")["reason"]["code"], "probe_died");
}

#[test]
fn of_two_contents_that_are_loaded_under_a_name_the_later_serves() {
    let served = Served::with(|settings| {
        let folder = settings.paths.state.parent().unwrap().join("children");
        settings.spokes.probe_program = child(&folder, &format!("sleep 0.4; {DIFFERS}"));
    });
    let contents = [1, 2, 3].map(lora);
    let paths = [1, 2, 3].map(|n| served.root.path().join(format!("{n}.gguf")));
    for (path, content) in paths.iter().zip(&contents) {
        bespoke::atomic_file::write(path, content).unwrap();
    }
    let load = |at: usize| {
        let body = json!({"lora_name": "given", "lora_path": paths[at], "load_inplace": true});
        served.daemon.post("/v1/load_lora_adapter", &body).status
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| load(0));
        served.row("given", "inspected");
        let second = scope.spawn(|| load(1));
        wait_until("the second is there", || {
            served.rows("given").iter().any(|row| row["generation"] == json!(generation(&contents[1])))
        });
        assert_eq!(load(2), 200);
        assert_ne!(first.join().unwrap(), 200, "it came too late");
        assert_ne!(second.join().unwrap(), 200, "it came too late");
    });
    assert_eq!(served.told(json!({"model": "given"})), alone(generation(&contents[2])));
}

#[test]
fn a_file_that_is_in_the_way_of_another_is_not_enabled_over_it() {
    let served = Served::new();
    let good = served.put("a.gguf", &lora(1));
    served.serves("a", good);
    served.put("a.safetensors", b"no matter what");
    assert_eq!(served.row("a", "quarantined")["reason"]["code"], "name_taken");
    let enabled = served.daemon.post("/v1/spokes/a:enable", &json!({}));
    assert!(enabled.status >= 400 && enabled.text.contains("name_taken"), "{}", enabled.text);
    assert_eq!(served.told(json!({"model": "a"})), alone(good));
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
    // Three at once exceed the limit, whatever is unloaded.
    let three = served.ask(json!({"lora": [{"id": "a"}, {"id": "b"}, {"id": "c"}]}));
    assert_eq!(three.status, 400, "{}", three.text);
    assert!(message(&three).contains("bytes in memory"), "{}", three.text);
}

#[test]
fn a_spoke_in_constant_use_makes_room_for_one_that_is_asked_for() {
    let size = lora(1).len() as u64;
    let engine = FakeEngine::new(Script::Spokes(Duration::from_millis(200)));
    let served = Served::over(engine, tempfile::tempdir().unwrap(), |settings| {
        settings.spokes.memory = bytesize::ByteSize(size * 3 / 2);
    });
    let [a, b] = ["a", "b"].map(|name| {
        let generation = served.put(&format!("{name}.gguf"), &lora(u32::from(name.as_bytes()[0])));
        served.serves(name, generation);
        generation
    });
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Three clients take turns, so that the spoke is in use at every moment.
        for client in 0..3 {
            let (served, done) = (&served, &done);
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(70 * client));
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    assert_eq!(served.told(json!({"model": "a"})), alone(a));
                }
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        for _ in 0..3 {
            let began = std::time::Instant::now();
            let answer = served.ask(json!({"model": "b"}));
            let took = began.elapsed();
            // Let the other clients end, whatever the result.
            done.store(
                answer.status != 200 || took > Duration::from_secs(4),
                std::sync::atomic::Ordering::SeqCst,
            );
            assert_eq!(answer.content(), alone(b));
            assert!(took < Duration::from_secs(4), "{took:?}");
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}

#[test]
fn what_was_refused_is_over_when_another_is_loaded_under_its_name() {
    let served = Served::new();
    let path = served.root.path().join("given.gguf");
    for n in 0..5 {
        bespoke::atomic_file::write(&path, &lora(n)[..1_000]).unwrap();
        let body = json!({"lora_name": "given", "lora_path": path, "load_inplace": true});
        assert_eq!(served.daemon.post("/v1/load_lora_adapter", &body).status, 400);
        assert_eq!(served.rows("given").len(), 1, "{:?}", served.rows("given"));
    }
}

#[test]
fn what_was_rolled_back_may_serve_under_another_name() {
    let served = Served::new();
    let [old, new] = [lora(1), lora(2)].map(|content| {
        let generation = served.put("a.gguf", &content);
        served.serves("a", generation);
        generation
    });
    assert_eq!(served.daemon.post("/v1/spokes/a:rollback", &json!({})).status, 200);
    served.serves("a", old);
    served.put("b.gguf", &lora(2));
    served.serves("b", new);
    // Its own name stays rolled back, even after a restart.
    let served = served.restart(|_| {});
    assert_eq!(served.row("a", "retired")["reason"]["code"], "rolled_back");
    assert_eq!(served.told(json!({"model": "a"})), alone(old));
    assert_eq!(served.told(json!({"model": "b"})), alone(new));
    assert_eq!(served.daemon.post("/v1/spokes/a:enable", &json!({})).status, 200);
    assert_eq!(served.told(json!({"model": "a"})), alone(new));
}

#[test]
fn contents_of_names_that_are_long_gone_are_not_kept() {
    let served = Served::new();
    let copies = || {
        let staged = std::fs::read_dir(served.root.path().join("state/spokes/staged")).unwrap();
        staged.filter(|entry| entry.as_ref().unwrap().file_name().len() == 64).count()
    };
    for n in 0..20 {
        let generation = served.put(&format!("n{n}.gguf"), &lora(n));
        served.serves(&format!("n{n}"), generation);
    }
    assert_eq!(copies(), 20);
    // Delete in reverse order.
    for n in (0..20).rev() {
        std::fs::remove_file(served.folder().join(format!("n{n}.gguf"))).unwrap();
        wait_until("it is gone", || served.rows(&format!("n{n}")).is_empty());
    }
    wait_until("the first to go are forgotten", || copies() == 16);
    let message = |name: &str| message(&served.ask(json!({"model": name})));
    assert!(message("n19").starts_with("no model is named"), "{}", message("n19"));
    assert!(message("n0").contains("its file was deleted"), "{}", message("n0"));
    // A content that was deleted by mistake can be restored.
    assert_eq!(served.daemon.post("/v1/spokes/n0:rollback", &json!({})).status, 200);
    assert_eq!(served.told(json!({"model": "n0"})), alone(generation(&lora(0))));
    // The number of a name is never reused for another.
    let id = served.row("n0", "serving")["id"].as_i64().unwrap();
    let new = served.put("new.gguf", &lora(99));
    served.serves("new", new);
    assert!(served.row("new", "serving")["id"].as_i64().unwrap() >= 20 && id == 0);
}

#[test]
fn a_spoke_that_can_never_fit_is_refused_with_the_numbers() {
    let served = Served::with(|settings| settings.spokes.memory = bytesize::ByteSize(100));
    served.put("a.gguf", &lora(1));
    let why = served.row("a", "quarantined")["reason"]["message"].as_str().unwrap().to_owned();
    assert!(why.contains("100"), "{why}");
}

#[test]
fn changes_need_an_admins_key() {
    let root = tempfile::tempdir().unwrap();
    let keys = root.path().join("keys");
    bespoke::atomic_file::write(&keys, b"inference-key-0123456789\nadmin:admin-key-0123456789\n").unwrap();
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
