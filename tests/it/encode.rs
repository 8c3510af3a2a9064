//! Tests of `bespoke encode`: the real binary against a daemon.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use bespoke::engine::{Constraint, EngineError, Script};
use bespoke::task::{Encoding, Event, gold};

use crate::daemon::Daemon;

fn encode(daemon: &str, arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .arg("encode")
        .args(arguments)
        .env("BESPOKE_ENDPOINT", daemon)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments doesn't read its input.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn an_event_comes_back_as_json_when_piped() {
    let event = Event::new("git", "commit", "Fix the parser (#12)");
    let memory = gold::encode(&event);
    let daemon = Daemon::script(Script::Text(memory.to_compact_json()));
    let object = r#"{"raw_input": "Fix the parser (#12)", "source": "git", "type": "commit"}"#;
    for endpoint in [daemon.url(""), daemon.url("/v1")] {
        let output = encode(&endpoint, &[], object);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let back: Encoding = serde_json::from_str(text(&output.stdout).trim()).unwrap();
        assert_eq!(back, memory);
    }
    let request = &daemon.engine.requests()[0];
    // The client sends the schema of the wire format; the daemon adds the limits that the prompt
    // states.
    let mut schema = bespoke::task::encoding_schema();
    bespoke::task::schema::add_limits(&mut schema);
    assert_eq!(request.constraint, Some(Constraint::JsonSchema(schema)));
    let prompt: String = request.prompt.iter().map(|segment| segment.text.as_str()).collect();
    assert!(prompt.contains("SOURCE: git\nTYPE: commit\nCONTENT:\nFix the parser (#12)"), "{prompt}");
}

#[test]
fn a_file_and_flags_make_an_event() {
    let daemon = Daemon::script(Script::Text(gold::encode(&Event::new("a", "b", "c")).to_compact_json()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("event.txt");
    bespoke::atomic_file::write(&file, b"Disk full on db-3").unwrap();
    let arguments = [file.to_str().unwrap(), "--source", "terminal", "--type", "error", "--json"];
    assert!(encode(&daemon.url(""), &arguments, "").status.success());
    let prompt: String = daemon.engine.requests()[0].prompt.iter().map(|s| s.text.as_str()).collect();
    assert!(prompt.contains("SOURCE: terminal\nTYPE: error\nCONTENT:\nDisk full on db-3"), "{prompt}");
}

#[test]
fn without_a_daemon_the_message_says_how_to_start_one() {
    // A port that was bound and released, so that nothing listens on it.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = encode(&format!("http://{free}"), &[], "an event");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("connection refused") && stderr.contains("bespoke serve"), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_the_daemon_says_is_shown() {
    let daemon = Daemon::script(Script::Fail(EngineError::PromptTooLong { tokens: 9_000, context: 2_048 }));
    let output = encode(&daemon.url(""), &[], "an event");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("400") && stderr.contains("9000") && stderr.contains("2048"), "{stderr}");
}

#[test]
fn bad_input_is_refused_before_anything_is_sent() {
    let daemon = Daemon::script(Script::Echo);
    for (arguments, stdin, word) in [
        (&[][..], "  \n", "empty"),
        (&["/nowhere/event.txt"][..], "", "/nowhere/event.txt"),
        (&["--endpoint", "localhost:1"][..], "x", "expected http://"),
    ] {
        let output = encode(&daemon.url(""), arguments, stdin);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    }
    assert!(daemon.engine.requests().is_empty());
}

#[test]
fn an_answer_that_is_no_memory_is_an_error() {
    let daemon = Daemon::script(Script::Text("[1]".into()));
    let output = encode(&daemon.url(""), &[], "an event");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("not a memory"), "{}", text(&output.stderr));
}
