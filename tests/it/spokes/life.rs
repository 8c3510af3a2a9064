//! Tests of the life of a dropped file: probed, judged, served, replaced, refused with its reason,
//! restored after a restart.

use std::path::Path;
use std::time::Duration;

use bespoke::config::GateSettings;
use bespoke::engine::{FakeEngine, Script};
use serde_json::{Value, json};

use super::{Served, alone, message};
use crate::daemon::{read_until, wait_until};
use crate::dropped::{DIFFERS, SAME, child, generation, lora, put, quarantined};

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
    let kept = quarantined(&served.root.path().join("state"), "encoding", bad);
    let mut reason = String::new();
    wait_until("the reason is written", || {
        reason = std::fs::read_to_string(kept.join("reason.json")).unwrap_or_default();
        !reason.is_empty()
    });
    let reason: Value = serde_json::from_str(&reason).unwrap();
    assert_eq!((&reason["generation"], &reason["entry"]), (&json!(bad), &json!("encoding.gguf")));
    assert_eq!(std::fs::read(kept.join("spoke")).unwrap(), lora(2)[..1_000]);
    assert!(served.folder().join("encoding.gguf").exists(), "what was dropped stays where it was dropped");
    // A better content takes over from both.
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
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1);
    // If an earlier content serves, it is put back in the folder: a name without a file would stop
    // serving.
    let good = served.put("good.gguf", &lora(1));
    served.serves("good", good);
    served.put("good.gguf", &lora(2)[..1_000]);
    wait_until("it is exchanged", || std::fs::read(served.folder().join("good.gguf")).unwrap() == lora(1));
    assert_eq!(std::fs::read_dir(kept).unwrap().count(), 2);
    wait_until("nothing is refused any more", || served.rows("good").len() == 1);
    served.serves("good", good);
    assert_eq!(served.told(json!({"model": "good"})), alone(good));
}

#[test]
fn a_refused_file_whose_copy_is_too_large_to_be_kept_stays_where_it_was_dropped() {
    let served = Served::with(|settings| {
        settings.spokes.move_refused = true;
        settings.spokes.quarantine = bytesize::ByteSize(100);
    });
    served.put("bad.gguf", &lora(2)[..1_000]);
    served.row("bad", "quarantined");
    let reason = served.root.path().join("state/spokes/quarantine");
    wait_until("its reason is there", || std::fs::read_dir(&reason).is_ok_and(|all| all.count() == 1));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(std::fs::read(served.folder().join("bad.gguf")).unwrap(), lora(2)[..1_000]);
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

/// A gate with one question, whose answer must keep nine in ten names.
fn gate(root: &Path, limit: Duration) -> GateSettings {
    let probes = root.join("probes.jsonl");
    bespoke::atomic_file::write(&probes, b"{\"id\": 1, \"raw_input\": \"Ana Lu saw 12 rows in db/x.sql\"}\n")
        .unwrap();
    GateSettings { probes, epr: Some(0.9), np: None, sc: None, fr: None, limit }
}

#[test]
fn a_gate_keeps_the_old_generation_where_the_new_one_is_worse() {
    let root = tempfile::tempdir().unwrap();
    let gate = gate(root.path(), Duration::from_secs(30));
    let engine =
        FakeEngine::new(Script::Text("{\"content\": \"Ana Lu saw 12 rows in db/x.sql\"}".to_owned()));
    let served = Served::over(engine, root, |settings| {
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
fn other_files_do_not_wait_for_a_gate() {
    let root = tempfile::tempdir().unwrap();
    let gate = gate(root.path(), Duration::from_secs(3));
    let engine = FakeEngine::new(Script::Spokes(Duration::from_secs(600)));
    let served = Served::over(engine, root, |settings| {
        settings.spokes.gates = [("judged".to_owned(), gate)].into();
    });
    served.put("judged.gguf", &lora(1));
    served.row("judged", "probed");
    let other = served.put("other.gguf", &lora(2));
    served.serves("other", other);
    assert_eq!(served.rows("judged")[0]["state"], "probed");
    let row = served.row("judged", "quarantined");
    assert_eq!(row["reason"]["code"], "gate_too_slow", "{row}");
}

#[test]
fn a_stop_in_the_middle_of_a_gate_says_nothing_of_the_spoke() {
    let root = tempfile::tempdir().unwrap();
    let gate = gate(root.path(), Duration::from_secs(600));
    let engine = FakeEngine::new(Script::Spokes(Duration::from_secs(600)));
    let served = Served::over(engine, root, |settings| {
        settings.server.drain = Duration::from_millis(100);
        settings.spokes.gates = [("judged".to_owned(), gate)].into();
    });
    let generation = served.put("judged.gguf", &lora(1));
    served.row("judged", "probed");
    wait_until("it is asked", || served.daemon.engine.running() == 1);
    let served = served.restart(|_| {});
    served.serves("judged", generation);
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
    let events = |more: &str| {
        let mut stream = served.daemon.connection();
        let request = format!("GET /v1/spokes/events HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        stream
    };
    let mut live = events("");
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
    let mut journal = events("last-event-id: 3\r\n");
    let told = read_until(&mut journal, "\"to\":\"serving\"");
    assert!(told.contains("id: 4") && !told.contains("id: 3\n"), "{told}");
    assert_eq!(served.daemon.get("/v1/spokes/events?after=x").status, 400);
    // A client with the id of another, longer journal receives events from now on.
    let mut ahead = events("last-event-id: 999\r\n");
    read_until(&mut ahead, "text/event-stream");
    served.put("bad.gguf", &lora(2)[..1_000]);
    served.row("bad", "quarantined");
    std::fs::remove_file(served.folder().join("bad.gguf")).unwrap();
    let told = read_until(&mut ahead, "\"to\":\"retired\"");
    assert!(told.contains("\"from\":\"quarantined\"") && told.contains("\"code\":\"deleted\""), "{told}");
    let metrics = served.daemon.get("/metrics").text;
    for line in [
        "bespoke_spoke_transitions_total{to=\"serving\"} 1",
        "bespoke_spokes{state=\"serving\"} 1",
        "bespoke_spoke_swaps_total 1",
        "bespoke_spoke_folder_readable 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in:\n{metrics}");
    }
    // An event stream must not keep the daemon from stopping.
    let mut served = served;
    let (ended, took) = served.daemon.stop();
    assert!(ended.is_ok() && took < Duration::from_secs(5), "{ended:?} after {took:?}");
}
