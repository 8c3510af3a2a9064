//! Tests of `bespoke doctor`: with and without a daemon, as text and as JSON.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::program::{MODEL, Program};

/// A configuration in its own folder.
struct Place {
    folder: TempDir,
    config: PathBuf,
}

impl Place {
    fn new(listen: &str, model: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("bespoke.toml");
        let text = format!(
            "[server]\nlisten = {listen:?}\n[model]\npath = {:?}\n[paths]\nstate = \"state\"\nspokes = \"spokes\"\n",
            model.display().to_string()
        );
        bespoke::atomic_file::write(&config, text.as_bytes()).unwrap();
        Self { folder, config }
    }

    fn shipped(listen: &str) -> Self {
        Self::new(listen, &Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL))
    }

    fn doctor(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bespoke"));
        command.arg("doctor").arg("--config").arg(&self.config).args(arguments);
        command.output().unwrap()
    }

    /// The exit code and the JSON answer.
    fn json(&self) -> (Option<i32>, Value) {
        let output = self.doctor(&["--json"]);
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    }
}

fn item<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let items = answer["items"].as_array().unwrap();
    items.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("{name}: {answer:#}"))
}

#[test]
fn without_a_daemon_everything_is_looked_at() {
    let place = Place::shipped("127.0.0.1:0");
    let (code, answer) = place.json();
    assert_eq!(code, Some(0), "{answer:#}");
    assert_eq!(answer["version"], env!("CARGO_PKG_VERSION"));
    let model = &item(&answer, "model")["details"];
    assert_eq!(model["sha256"].as_str().map(str::len), Some(64));
    assert!(model["parameters"].as_u64() > Some(1_000_000), "{model}");
    assert_eq!(item(&answer, "kernels")["details"]["self_test"]["outcome"], "passed", "{answer:#}");
    assert!(item(&answer, "open files")["details"]["soft"].as_u64() > Some(0));
    assert!(item(&answer, "memory")["details"]["total"].as_u64() > Some(1 << 20));
    let compilers = item(&answer, "program")["details"]["compilers"].to_string();
    assert!(compilers.contains("rustc"), "{compilers}");
    assert_eq!(item(&answer, "state folder")["details"]["exists"], false);
    assert!(!place.folder.path().join("state").exists(), "the doctor makes nothing");
}

#[test]
fn people_get_a_line_for_each_item() {
    let place = Place::shipped("127.0.0.1:0");
    let output = place.doctor(&[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    // Remove facts that differ between machines; states and names remain.
    let lines: Vec<String> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("hint: "))
        .map(|line| {
            let (head, found) = line.split_at(24);
            let known = found.starts_with("127.0.0.1")
                || found.starts_with("there is no record")
                || found.starts_with("jemalloc");
            let machine = ["processor", "program", "memory", "open files", "inotify"];
            let state = if machine.iter().any(|name| head.contains(name)) { "[state] " } else { &head[..8] };
            format!("{state:<8} {} {}", head[9..].trim(), if known { found } else { "[found]" })
                .trim()
                .to_owned()
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    [state]  processor [found]
    [state]  program [found]
    ok       allocator jemalloc, for llama.cpp too
    ok       configuration [found]
    [state]  inotify [found]
    [state]  memory [found]
    [state]  open files [found]
    ok       state folder [found]
    ok       spokes folder [found]
    ok       port 127.0.0.1:0 is free: no daemon is running
    ok       model [found]
    ok       kernels [found]
    ok       last run there is no record of one
    ");
}

#[test]
fn a_running_daemon_is_asked_and_a_crash_is_remembered() {
    let place = Place::shipped("127.0.0.1:0");
    let config = place.config.display().to_string();
    let state = place.folder.path().join("state").display().to_string();
    let program = Program::serve(&["--config", &config, "--state", &state], &[]);
    let address = program.url().trim_start_matches("http://").to_owned();
    program.line(" is ready: ");
    let text = std::fs::read_to_string(&place.config).unwrap().replace("127.0.0.1:0", &address);
    bespoke::atomic_file::write(&place.config, text.as_bytes()).unwrap();
    let (code, answer) = place.json();
    assert_eq!(code, Some(0), "{answer:#}");
    assert_eq!(item(&answer, "port")["details"]["by"], "bespoke", "{answer:#}");
    assert_eq!(item(&answer, "kernels")["details"]["self_test"]["outcome"], "passed");
    assert!(item(&answer, "state folder")["details"]["fsync_ms"].as_f64() > Some(0.0));
    assert!(item(&answer, "last run")["found"].as_str().unwrap().contains("a daemon has been running since"));
    program.signal("KILL");
    drop(program);
    let (code, answer) = place.json();
    assert_eq!(code, Some(0), "{answer:#}");
    let last = item(&answer, "last run");
    assert_eq!(last["state"], "warning", "{last}");
    assert!(last["found"].as_str().unwrap().contains("ended without a word"), "{last}");
    // The daemon has run the self-test on this post with this program.
    assert_eq!(item(&answer, "kernels")["details"]["self_test"]["outcome"], "remembered", "{answer:#}");
}

#[test]
fn what_is_in_the_way_is_a_failure_with_a_hint() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let mut connection = connection;
            let mut request = [0; 1024];
            assert!(connection.read(&mut request).is_ok_and(|count| count > 0));
            let _ =
                connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("no.gguf");
    bespoke::atomic_file::write(&model, b"GGUF but not for long").unwrap();
    let place = Place::new(&address, &model);
    let (code, answer) = place.json();
    assert_eq!((code, &answer["state"]), (Some(1), &Value::from("failure")));
    for name in ["port", "model"] {
        let found = item(&answer, name);
        assert_eq!(found["state"], "failure", "{found}");
        assert!(found["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{found}");
    }
    assert!(item(&answer, "port")["found"].as_str().unwrap().contains("another program"));
    bespoke::atomic_file::write(&place.config, b"[model]\nlanes = \"many\"\n").unwrap();
    let (code, answer) = place.json();
    assert_eq!((code, &item(&answer, "configuration")["state"]), (Some(1), &Value::from("failure")));
    let words = place.doctor(&[]);
    assert_eq!(words.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&words.stderr).contains("checks failed"));
}
