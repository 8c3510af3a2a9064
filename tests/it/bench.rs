//! Tests of `bespoke bench`: the real binary against scripted daemons, and stand-in models in
//! llama.cpp.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use assert_cmd::Command;
use bespoke::engine::reference::Reference;
use bespoke::engine::{EngineError, FakeEngine, Script};
use bespoke::gguf::{Gguf, check_model};
use bespoke::model::synthetic_model::{self, Shape, WeightType};
use serde_json::Value;

use crate::daemon::Daemon;

fn bench(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("bespoke").unwrap();
    command.arg("bench").args(args).env_remove("BESPOKE_ENDPOINT").env_remove("BESPOKE_API_KEY");
    command
}

/// The output of a run with `--json`.
fn report(args: &[&str]) -> Value {
    let done = bench(&[&["serve", "--json"], args].concat()).assert().success();
    serde_json::from_slice(&done.get_output().stdout).unwrap()
}

fn slow(words: &str, milliseconds: u64) -> Daemon {
    Daemon::script(Script::Slow { text: words.to_owned(), delay: Duration::from_millis(milliseconds) })
}

/// The report with null in place of numbers that depend on the clock, and of addresses.
fn untimed(value: &Value, key: &str) -> Value {
    // Whether the daemon accepts `ignore_eos` doesn't matter for the report's shape.
    let timed =
        ["fixed_length", "seconds", "min", "median", "max", "p50", "p90", "p99", "ttft_p50_ms", "url"];
    match value {
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), untimed(value, key))).collect()
        }
        Value::Array(items) => items.iter().map(|item| untimed(item, key)).collect(),
        _ if timed.contains(&key) || key.ends_with("_per_second") => Value::Null,
        other => other.clone(),
    }
}

#[test]
fn two_endpoints_are_asked_the_same_in_turn_and_the_slower_one_is_found() {
    let (ours, theirs) = (slow("a b c", 1), slow("a b c", 40));
    let folder = tempfile::tempdir().unwrap();
    let drawing = folder.path().join("run.svg");
    let (a, b, svg) = (ours.url("/v1"), theirs.url(""), drawing.to_str().unwrap());
    let small = ["--concurrency", "1,3", "--requests", "3", "--rounds", "2", "--warmup", "1", "--seed", "5"];
    let shared =
        ["--endpoint", &a, "--against", &b, "--workload", "chat", "--chat-tokens", "3", "--svg", svg];
    let report = report(&[&small[..], &shared].concat());
    insta::assert_json_snapshot!(untimed(&report, ""));
    for level in report["levels"].as_array().unwrap() {
        assert!(level["ratio"]["requests_per_second"]["min"].as_f64().unwrap() > 1.5, "{level}");
        assert!(level["ratio"]["ttft_p50"]["max"].as_f64().unwrap() < 0.7, "{level}");
        // Three words 40 ms apart: the first comes after one pause, the others after one more each.
        let [first, between] =
            ["ttft_ms", "itl_ms"].map(|key| level["measured"][1][key]["p50"].as_f64().unwrap());
        assert!((39.0..200.0).contains(&first) && (39.0..200.0).contains(&between), "{level}");
    }
    let prompts = |daemon: &Daemon| -> Vec<String> {
        let texts = |prompt: &bespoke::engine::Prompt| prompt.iter().map(|s| s.text.as_str()).collect();
        daemon.engine.requests().iter().map(|request| texts(&request.prompt)).collect()
    };
    // In addition to the check whether a fixed length is possible: a warm-up and two rounds at each
    // of two concurrencies.
    let (asked, other) = (prompts(&ours), prompts(&theirs));
    let asked: Vec<&String> = asked.iter().filter(|prompt| prompt.contains("What does this mean")).collect();
    assert_eq!(asked.len(), 2 * (1 + 2 * 3));
    let distinct: HashSet<&String> = asked.iter().copied().collect();
    assert_eq!(distinct.len(), asked.len(), "no prompt is sent twice");
    let other: HashSet<&String> =
        other.iter().filter(|prompt| prompt.contains("What does this mean")).collect();
    assert_eq!(distinct, other);
    assert!(fs_err::read_to_string(&drawing).unwrap().contains("tokens/s"));
}

#[test]
fn answers_that_are_no_json_are_counted_and_shown() {
    let daemon = Daemon::script(Script::Text("{\"gist\": \"cut in the".into()));
    // The scripted engine answers a schema with an instance of it, so a failure is provoked with a
    // text request.
    let url = daemon.url("");
    let encoding =
        ["--endpoint", &url, "--concurrency", "2", "--requests", "4", "--rounds", "1", "--warmup", "0"];
    let valid = report(&encoding);
    assert_eq!(valid["levels"][0]["measured"][0]["invalid"], 0);
    assert_eq!(valid["levels"][0]["measured"][0]["requests"], 4);
    let shown = bench(&[&["serve"], &encoding[..]].concat()).assert().success();
    let output = shown.get_output();
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("requests/s") && table.contains("invalid"), "{table}");
    // Without a terminal, one line per round is printed.
    assert!(String::from_utf8_lossy(&output.stderr).contains("round 1, "), "{output:?}");
}

#[test]
fn requests_that_are_refused_are_errors_and_none_answered_is_a_failure() {
    let broken = Daemon::script(Script::Fail(EngineError::PromptTooLong { tokens: 9_000, context: 2_048 }));
    let url = broken.url("");
    let failed =
        bench(&["serve", "--endpoint", &url, "--concurrency", "1", "--requests", "2"]).assert().code(1);
    let message = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(message.contains("answered none") && message.contains("9000"), "{message}");

    let narrow = Daemon::over(
        FakeEngine::new(Script::Slow { text: "a b c d".into(), delay: Duration::from_millis(20) })
            .with_limit(2),
    );
    let url = narrow.url("");
    let args =
        ["--endpoint", &url, "--workload", "chat", "--concurrency", "6", "--requests", "6", "--rounds", "1"];
    let report = report(&[&args[..], &["--warmup", "0"]].concat());
    let measured = &report["levels"][0]["measured"][0];
    assert_eq!(measured["requests"], 6);
    assert!(measured["errors"].as_u64().unwrap() >= 1, "{measured}");
    assert!(measured["first_error"].as_str().unwrap().contains("503"), "{measured}");
}

#[test]
fn a_head_test_reports_new_and_known_heads() {
    let daemon = slow("a b", 2);
    let url = daemon.url("");
    let args = ["--endpoint", &url, "--concurrency", "1", "--requests", "2", "--rounds", "1", "--head-test"];
    let report = report(&args);
    let head = &report["head"]["endpoints"][0];
    assert!(head["first_ttft_ms"]["p50"].as_f64().unwrap() >= 2.0, "{head}");
    // The scripted engine caches nothing, and says so.
    assert_eq!(head["cached_share"], 0.0);
}

#[test]
fn wrong_endpoints_and_usage_are_refused_before_anything_is_measured() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = Daemon::script(Script::Echo);
    let (url, nobody) = (daemon.url(""), format!("http://{free}"));
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--endpoint", &nobody], 1, "connection refused"),
        (&["--endpoint", &url, "--against", &nobody], 1, &nobody),
        (&["--endpoint", &url, "--against", "localhost:1"], 1, "expected http://"),
        (
            &["--endpoint", &url, "--events", "tests/fixtures/eval/pairs.jsonl", "--rounds", "9999"],
            1,
            "this run takes",
        ),
        (&["--endpoint", &url, "--concurrency", "0"], 2, "--concurrency"),
        (&["--endpoint", &url, "--workload", "poems"], 2, "encoding"),
    ];
    for (args, code, word) in cases {
        let refused = bench(&[&["serve"], args].concat()).assert().code(code);
        let message = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(message.contains(word), "{args:?}: {message}");
        assert!(refused.get_output().stdout.is_empty());
    }
    assert!(daemon.engine.requests().is_empty());
}

#[test]
fn a_stand_in_loads_in_llama_cpp_and_its_seed_decides_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bespoke-tiny.gguf");
    let write = |name: &str, stored: &str, seed: &str| {
        let out = place(name);
        let args = ["model", out.to_str().unwrap(), "--shape", "tiny", "--type", stored, "--seed", seed];
        bench(&args).arg("--tokenizer").arg(&shipped).assert().success();
        fs_err::read(out).unwrap()
    };
    let bytes = write("a.gguf", "Q8_0", "1");
    assert_eq!(bytes, write("again.gguf", "Q8_0", "1"));
    assert_ne!(bytes, write("b.gguf", "Q8_0", "2"));
    assert!(write("four.gguf", "Q4_0", "1").len() < bytes.len() * 3 / 4);

    let file = Gguf::open(&place("a.gguf")).unwrap();
    check_model(&file).unwrap();
    let weights = file.tensor_f32("blk.1.ffn_up.weight").unwrap();
    let mean =
        |of: fn(f64) -> f64| weights.iter().map(|&w| of(f64::from(w))).sum::<f64>() / weights.len() as f64;
    assert!((mean(|w| w * w).sqrt() - 0.02).abs() < 0.001 && mean(|w| w).abs() < 0.001);
    assert!(
        file.tensor_f32("blk.0.attn_norm.weight").unwrap().iter().all(|&w| (w - 1.0).abs() < f32::EPSILON)
    );

    let theirs = Reference::open(&shipped).unwrap();
    for name in ["a.gguf", "four.gguf"] {
        let ours = Reference::open(&place(name)).unwrap();
        let text = "<|user|>Deploy of billing-api 2.4.1 failed at 14:05<|end|><|assistant|>";
        let ids = ours.tokenize(text, true);
        assert_eq!(ids, theirs.tokenize(text, true), "filler tokens change no prompt");
        let logits = ours.logits(&ids).unwrap();
        assert_eq!(logits.len(), ids.len() * Shape::Tiny.config().vocab_size);
        assert!(logits.iter().all(|logit| logit.is_finite()));
        let (low, high) = logits.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        assert!(high - low > 0.1, "the weights say something: {low} to {high}");
    }
}

#[test]
fn the_shape_of_the_post_is_that_of_its_namesake() {
    let config = Shape::Post.config();
    // 1.54 billion with the tied embedding counted once.
    assert_eq!(config.parameter_count() / 10_000_000, 154);
    let missing = synthetic_model::write(
        Shape::Tiny,
        WeightType::Q8,
        1,
        Path::new("no/such.gguf"),
        Path::new("/nowhere/x.gguf"),
    );
    assert!(missing.unwrap_err().to_string().contains("no/such.gguf"));
}
