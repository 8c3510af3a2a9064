//! Tests of `bespoke data`: rows are generated deterministically, and a check distinguishes clean
//! files from leaking and broken ones.

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

fn bespoke(folder: &TempDir, args: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("bespoke").unwrap().current_dir(folder.path()).arg("data").args(args).assert()
}

fn stdout(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn stderr(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

#[test]
fn rows_repeat_and_can_be_asked_for_from_the_middle() {
    let folder = TempDir::new().unwrap();
    let all =
        stdout(&bespoke(&folder, &["generate", "--split", "train", "--seed", "7", "--rows", "40"]).success());
    bespoke(&folder, &["generate", "--split=train", "--seed=7", "--rows=40", "--out=new/t.jsonl"]).success();
    assert_eq!(fs_err::read_to_string(folder.path().join("new/t.jsonl")).unwrap(), all);
    let tail = stdout(
        &bespoke(&folder, &["generate", "--split=train", "--seed=7", "--first=30", "--rows=10"]).success(),
    );
    assert!(all.ends_with(&tail) && tail.lines().count() == 10);
    let short = stdout(
        &bespoke(&folder, &["generate", "--split=eval", "--rows=30", "--max-event-chars=80"]).success(),
    );
    for line in short.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert!(row["event"]["content"].as_str().unwrap().chars().count() <= 80);
        assert_eq!(row["split"], "eval");
        assert_eq!(row["messages"][2]["role"], "assistant");
        let answer: Value = serde_json::from_str(row["messages"][2]["content"].as_str().unwrap()).unwrap();
        let schema = jsonschema::validator_for(&bespoke::task::encoding_schema()).unwrap();
        assert!(schema.is_valid(&answer));
    }
    let events = stdout(
        &bespoke(&folder, &["generate", "--split=train", "--seed=7", "--rows=3", "--events-only"]).success(),
    );
    let (event, row): (Value, Value) = (
        serde_json::from_str(events.lines().next().unwrap()).unwrap(),
        serde_json::from_str(all.lines().next().unwrap()).unwrap(),
    );
    let keys: Vec<&String> = event.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "raw_input", "source", "type"]);
    assert_eq!((&event["raw_input"], &event["type"]), (&row["event"]["content"], &row["event"]["type"]));
}

#[test]
fn the_check_passes_clean_splits_and_refuses_leaks_and_broken_answers() {
    let folder = TempDir::new().unwrap();
    for (split, rows) in [("train", "1500"), ("eval", "200")] {
        let out = format!("--out={split}.jsonl");
        bespoke(&folder, &["generate", "--split", split, "--rows", rows, &out]).success();
    }
    let report: Value = serde_json::from_str(&stdout(
        &bespoke(&folder, &["check", "train.jsonl", "eval.jsonl", "--json"]).success(),
    ))
    .unwrap();
    assert_eq!((&report["train"]["rows"], &report["eval"]["rows"]), (&1500.into(), &200.into()));
    assert_eq!(report["train"]["invalid_answers"], 0);
    assert_eq!(report["shared_ids"], 0);
    assert!(report["train"]["kinds"].as_object().unwrap().len() >= 14);

    let train = fs_err::read_to_string(folder.path().join("train.jsonl")).unwrap();
    let leak = train.lines().take(100).collect::<Vec<_>>().join("\n");
    put(&folder, "leak.jsonl", &leak);
    let refused = bespoke(&folder, &["check", "train.jsonl", "leak.jsonl"]).code(1);
    assert!(stderr(&refused).contains("overlap"), "{}", stderr(&refused));
    assert!(stdout(&refused).contains("all in"), "the report is printed all the same");

    put(
        &folder,
        "odd.jsonl",
        &leak.replacen("\\\"significance\\\":\\\"", "\\\"significance\\\":\\\"very ", 1),
    );
    let refused = bespoke(&folder, &["check", "odd.jsonl", "eval.jsonl"]).code(1);
    assert!(stderr(&refused).contains("significance: \"very "), "{}", stderr(&refused));

    put(&folder, "torn.jsonl", &leak[..leak.len() - 20]);
    let refused = bespoke(&folder, &["check", "torn.jsonl", "eval.jsonl"]).code(1);
    assert!(stderr(&refused).contains("torn.jsonl:100:"), "{}", stderr(&refused));

    let absent = bespoke(&folder, &["check", "none.jsonl", "eval.jsonl"]).code(1);
    assert!(stderr(&absent).contains("none.jsonl"), "{}", stderr(&absent));
    bespoke(&folder, &["generate", "--split", "both", "--rows", "1"]).code(2);
}

fn put(folder: &TempDir, name: &str, text: &str) {
    bespoke::atomic_file::write(&folder.path().join(name), text.as_bytes()).unwrap();
}
