//! Tests of `bespoke spokes` and the subcommands of `bespoke spoke` that change what a daemon
//! serves.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::dropped::{felix, generation, lora, put};
use crate::program::{MODEL, Program};

/// The program with a scripted engine, and its commands.
struct Commanded {
    root: TempDir,
    program: Program,
    url: String,
}

impl Commanded {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        bespoke::atomic_file::write(
            &root.path().join("bespoke.toml"),
            b"[paths]\nspokes = 'spokes'\nstate = 'state'\n",
        )
        .unwrap();
        let config = root.path().join("bespoke.toml");
        let arguments = ["--config", config.to_str().unwrap()];
        let program = Program::serve(&arguments, &[("BESPOKE_FAKE_ENGINE", "0")]);
        let url = program.url();
        Self { root, program, url }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_bespoke"))
            .args(arguments)
            .env("BESPOKE_ENDPOINT", &self.url)
            .env("BESPOKE_CONFIG", self.path("bespoke.toml"))
            .env("BESPOKE_FAKE_ENGINE", "0")
            .output()
            .unwrap()
    }

    /// The output of a command, which must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and stderr of a command, which must fail.
    fn wrong(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_spoke_is_added_listed_rolled_back_switched_and_removed() {
    let mut commanded = Commanded::new();
    assert!(commanded.ok(&["spokes"]).starts_with("no spokes"));
    let (first, second) = (lora(1), lora(2));
    put(commanded.root.path(), "run-1.gguf", &first);
    put(commanded.root.path(), "run-2.gguf", &second);
    let added = commanded.ok(&["spoke", "add", text(&commanded.path("run-1.gguf")), "--as", "encoding"]);
    assert_eq!(added, format!("encoding: serving {}\n", generation(&first).short()));
    commanded.ok(&["spoke", "add", text(&commanded.path("run-2.gguf")), "--as", "encoding", "--json"]);
    let table = commanded.ok(&["spokes"]);
    assert!(table.contains("encoding") && table.contains("serving") && table.contains("lora"), "{table}");
    let all: Value = serde_json::from_str(&commanded.ok(&["spokes", "--json"])).unwrap();
    assert_eq!(all["data"][0]["generation"], generation(&second).to_string());

    let back = commanded.ok(&["spoke", "rollback", "encoding"]);
    assert_eq!(back, format!("encoding: serving {}\n", generation(&first).short()));
    let (code, said) = commanded.wrong(&["spoke", "rollback", "encoding"]);
    assert!(code == Some(1) && said.contains("no generation"), "{said}");
    assert!(commanded.ok(&["spoke", "disable", "encoding"]).contains("retired"));
    assert!(commanded.ok(&["spoke", "enable", "encoding"]).contains("serving"));

    assert!(commanded.ok(&["spoke", "rm", "encoding"]).contains("removed"));
    assert!(!commanded.path("spokes/encoding.gguf").exists());
    let (code, said) = commanded.wrong(&["spoke", "rm", "nobody"]);
    assert!(code == Some(1) && said.contains("no spoke is named \"nobody\""), "{said}");
    assert_eq!(commanded.program.terminate(), Some(0));
}

#[test]
fn a_file_that_is_refused_is_told_with_its_reason() {
    let commanded = Commanded::new();
    put(commanded.root.path(), "cut.gguf", &lora(1)[..1_000]);
    let (code, said) = commanded.wrong(&["spoke", "add", text(&commanded.path("cut.gguf"))]);
    assert_eq!(code, Some(1));
    assert!(said.contains("error: ") && said.contains("cut.gguf") && said.contains("outside_file"), "{said}");
    assert!(!commanded.path("spokes/cut.gguf").exists(), "what is no spoke takes nobody's place");
    // Only the daemon can tell that it was made for another post.
    for (file, name) in
        [("valid-lora.gguf", "other"), ("valid-peft.zip", "zipped"), ("valid-felix.safetensors", "felix")]
    {
        let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/spokes").join(file);
        let (code, said) = commanded.wrong(&["spoke", "add", text(&other), "--as", name]);
        assert!(code == Some(1) && said.contains("copied to") && said.contains("error: "), "{said}");
    }
    put(&commanded.path("spokes"), "cut.gguf", &lora(1)[..1_000]);
    let began = Instant::now();
    while !commanded.ok(&["spokes"]).contains("cut: ") {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", commanded.ok(&["spokes"]));
    }
    let listed = commanded.ok(&["spokes"]);
    assert!(listed.contains("quarantined") && listed.contains("other: "), "{listed}");
    let (_, said) = commanded.wrong(&["spoke", "add", text(&commanded.path("cut.gguf")), "--as", "a:b"]);
    assert!(said.contains("found ':'"), "{said}");
    let (_, said) = commanded.wrong(&["spoke", "add", text(&commanded.path("nothing.gguf"))]);
    assert!(said.contains("nothing.gguf"), "{said}");
}

#[test]
fn a_name_that_is_taken_is_told_at_once() {
    let commanded = Commanded::new();
    put(commanded.root.path(), "a.gguf", &lora(1));
    put(commanded.root.path(), "a.GGUF", &lora(2));
    commanded.ok(&["spoke", "add", text(&commanded.path("a.gguf"))]);
    for _ in 0..2 {
        let began = Instant::now();
        let (code, said) = commanded.wrong(&["spoke", "add", text(&commanded.path("a.GGUF"))]);
        assert!(code == Some(1) && said.contains("has the name \"a\" already"), "{said}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

#[test]
fn without_a_daemon_a_file_is_copied_and_waits() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "a.gguf", &lora(1));
    let folder = root.path().join("spokes");
    let output = Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .args(["spoke", "add", text(&root.path().join("a.gguf")), "--spokes", text(&folder)])
        .env("BESPOKE_ENDPOINT", "http://127.0.0.1:1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("no daemon answers"), "{said}");
    assert_eq!(std::fs::read(folder.join("a.gguf")).unwrap(), lora(1));
}

#[test]
fn a_probe_compares_with_the_post_alone() {
    let commanded = Commanded::new();
    for (name, content) in [("a.gguf", lora(1)), ("f.gguf", felix(1))] {
        put(commanded.root.path(), name, &content);
        let file = commanded.path(name);
        let told = commanded.ok(&["spoke", "probe", text(&file), "--model", MODEL]);
        assert!(told.contains("it works and changes answers"), "{told}");
        let line = commanded.ok(&["spoke", "probe", text(&file), "--model", MODEL, "--json"]);
        let finding: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&finding["verdict"], &finding["finite"]), (&"differs".into(), &true.into()));
    }
    put(commanded.root.path(), "cut.gguf", &lora(1)[..1_000]);
    let cut = commanded.path("cut.gguf");
    let line = commanded.ok(&["spoke", "probe", text(&cut), "--model", MODEL, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["verdict"], "refused");
    commanded.wrong(&["spoke", "probe", text(&cut), "--model", MODEL]);
}

#[test]
fn a_reader_that_has_had_enough_and_too_little_memory_are_no_panics() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "a.gguf", &lora(1));
    let file = root.path().join("a.gguf");
    let mut show = Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .args(["spoke", "show", text(&file)])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(show.stdout.take());
    let output = show.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*String::from_utf8_lossy(&output.stderr)), (Some(141), ""));
    let output = Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .args(["spoke", "probe", text(&file), "--model", MODEL, "--memory", "1000000"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("needs at least 2"), "{said}");
}

#[test]
fn the_post_s_own_name_is_no_spoke_s() {
    let commanded = Commanded::new();
    put(&commanded.path("spokes"), "bespoke.gguf", &lora(1));
    let began = Instant::now();
    while !commanded.ok(&["spokes"]).contains("name_taken") {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", commanded.ok(&["spokes"]));
    }
}
