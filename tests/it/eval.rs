//! Tests of `bespoke eval`: scores equal those of an independent reference, and invalid rows are
//! named.

use assert_cmd::Command;
use serde_json::Value;

fn bespoke(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("bespoke").unwrap();
    command.arg("eval").args(args);
    command
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    std::str::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn scores_equal_those_of_the_reference() {
    let pairs = "tests/fixtures/eval/pairs.jsonl";
    let ours = bespoke(&["score", pairs, "--json"]).assert().success();
    let ours = lines(&ours.get_output().stdout);
    let reference = lines(&fs_err::read("tests/fixtures/eval/scores.jsonl").unwrap());
    assert_eq!(ours.len(), reference.len());
    for (ours, reference) in ours.iter().zip(&reference) {
        let keys: Vec<&String> = ours.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "epr", "fr", "np", "ted", "mih", "sc", "parsed"]);
        for (key, expected) in reference.as_object().unwrap() {
            let equal = match (ours[key].as_f64(), expected.as_f64()) {
                (Some(ours), Some(expected)) => (ours - expected).abs() < 1e-12,
                _ => ours[key] == *expected,
            };
            assert!(equal, "{key} is {}, the reference has {reference}", ours[key]);
        }
    }
    // A reference with constant values would prove nothing.
    for key in ["epr", "fr", "np", "ted", "mih", "sc"] {
        let values: std::collections::BTreeSet<String> =
            reference.iter().map(|row| row[key].to_string()).collect();
        assert!(values.len() > 1, "{key} never varies");
    }
}

#[test]
fn wrong_rows_are_named_with_file_line_and_key() {
    let good = r#"{"id": "a", "raw_input": "x", "output": "{}"}"#;
    let cases = [
        (
            format!("{good}\n{{\"id\": 1, \"raw_input\": \"x\"}}"),
            "stdin:2: output: found nothing, expected string",
        ),
        (format!("{good}\n\nnonsense"), "stdin:3: not JSON"),
        (String::new(), "stdin: no rows"),
    ];
    for (text, expected) in cases {
        let refused = bespoke(&["score", "-", "--json"]).write_stdin(text).assert().code(1);
        let output = refused.get_output();
        assert!(output.stdout.is_empty());
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(expected), "{message}");
    }
    let missing = bespoke(&["score", "no/such/file.jsonl"]).assert().code(1);
    assert!(String::from_utf8_lossy(&missing.get_output().stderr).contains("no/such/file.jsonl"));
}

#[test]
fn the_table_shows_rows_and_honest_means() {
    let rows = concat!(
        r#"{"id": "kept", "raw_input": "Ana Bell saw 12 errors in src/pool.go, and then the pool of v1.2 was full", "#,
        r#""output": "{\"content\": \"Ana Bell saw 12 errors in src/pool.go, v1.2\"}"}"#,
        "\n",
        r#"{"id": "lost", "raw_input": "it works now", "output": "sorry"}"#,
    );
    let shown = bespoke(&["score", "-"]).write_stdin(rows).assert().success();
    insta::assert_snapshot!(String::from_utf8(shown.get_output().stdout.clone()).unwrap());
}
