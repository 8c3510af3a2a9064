//! Tests that a run that is killed at any moment ends with the same bytes as one that is not.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use bespoke::digest::Digest;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::train::{self, bespoke, stderr, write};

const STEPS: u64 = 12;

const RECIPE: &str = r#"
[model]
family = "qwen3"
hidden_size = 16
layers = 2
heads = 2
kv_heads = 1
head_dim = 8
ffn = 24
max_position = 128

[train]
steps = 12
batch = 3
seq_len = 96
seed = 7
checkpoint_every = 2
eval_every = 3
metrics_every = 4
micro_tokens = 96
ema = 0.9
threads = 2

[data]
vocabulary = 300
eval_rows = 6

[data.loading]
eta = 1.0

[data.domains.files]
weight = 2.0
train = ["rows.jsonl"]
eval = ["rows.jsonl"]
reference_loss = 3.0

[data.domains.texts]
train = ["texts.jsonl"]
eval = ["texts.jsonl"]
reference_loss = 5.0
"#;

fn command(folder: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bespoke"));
    command.current_dir(folder).args(["train", "recipe.toml", "--out", out]).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        bespoke::atomic_file::write(&folder.path().join(name), text.as_bytes()).unwrap();
    };
    let row = |i: u32| format!("{{\"prompt\":\"copy note {i}: \",\"completion\":\"note {}\"}}\n", i % 13);
    write("rows.jsonl", (0..60).map(row).collect());
    let text = |i: u32| {
        format!("{{\"text\":\"on day {i} the {} went home\"}}\n", ["cat", "dog", "hen"][i as usize % 3])
    };
    write("texts.jsonl", (0..40).map(text).collect());
    write("recipe.toml", RECIPE.to_owned());
    folder
}

/// Hashes of everything that finished runs must have in common: weights, moments, data position,
/// log, metrics.
fn hashes(out: &Path) -> Vec<(String, Digest)> {
    let names =
        ["weights.safetensors", "averaged.safetensors", "moments.safetensors", "state.json", "manifest.json"];
    let paths = names.iter().map(|name| format!("checkpoints/{STEPS}/{name}"));
    let beside = ["log.jsonl", "metrics.jsonl", "model.safetensors", "tokenizer.json"].map(str::to_owned);
    paths
        .chain(beside)
        .map(|name| {
            let file = std::fs::File::open(out.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, Digest::of_reader(file).unwrap())
        })
        .collect()
}

/// Kills a run shortly after it reports a step. Returns whether it was killed before its end.
fn killed(command: &mut Command, after: u64, rng: &mut ChaCha8Rng) -> bool {
    let mut child = command.spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap());
    let mark = format!("step {after}/");
    for line in said.lines().map_while(Result::ok) {
        if line.starts_with(&mark) {
            std::thread::sleep(std::time::Duration::from_micros(rng.random_range(0..30_000)));
            break;
        }
    }
    let _ = child.kill();
    !child.wait().unwrap().success()
}

/// Kills `BESPOKE_KILLS` runs (default 3) at a random step and resumes them, some of them several
/// times.
#[test]
fn a_run_killed_at_random_steps_ends_with_the_same_bytes() {
    let kills =
        std::env::var("BESPOKE_KILLS").map_or(3, |text| text.parse().expect("BESPOKE_KILLS is a number"));
    let folder = folder();
    assert!(command(folder.path(), "whole", &[]).status().unwrap().success());
    let expected = hashes(&folder.path().join("whole"));
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut done = 0;
    for run in 0.. {
        let out = format!("run{run}");
        let mut after = rng.random_range(1..STEPS);
        if killed(&mut command(folder.path(), &out, &[]), after, &mut rng) {
            done += 1;
        }
        // Some are killed again.
        while done < kills && rng.random_bool(0.4) {
            after = rng.random_range(after..=STEPS);
            if killed(&mut command(folder.path(), &out, &["--resume"]), after, &mut rng) {
                done += 1;
            }
        }
        let output = command(folder.path(), &out, &["--resume"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found = hashes(&folder.path().join(&out));
        for ((name, expected), (_, found)) in expected.iter().zip(&found) {
            assert_eq!(found, expected, "run {run}, killed behind step {after}: {name}");
        }
        let left: Vec<_> = std::fs::read_dir(folder.path().join(&out).join("checkpoints")).unwrap().collect();
        assert!(left.iter().all(|e| !e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tmp")));
        std::fs::remove_dir_all(folder.path().join(&out)).unwrap();
        if done >= kills {
            break;
        }
    }
    println!("{done} kills, each run equal to the uninterrupted one in {} files", expected.len());
}

/// Kills at the points where most could be half-done.
#[test]
fn a_run_killed_at_its_seams_ends_with_the_same_bytes() {
    let folder = folder();
    assert!(command(folder.path(), "whole", &[]).status().unwrap().success());
    let expected = hashes(&folder.path().join("whole"));
    for point in
        ["train.stepped@5", "checkpoint.written@6", "checkpoint.named@6", "train.saved@12", "train.written"]
    {
        let mut dying = command(folder.path(), "run", &[]);
        let output = dying.env("BESPOKE_FAIL", point).output().unwrap();
        assert!(!output.status.success(), "{point} was not passed");
        let output = command(folder.path(), "run", &["--resume"]).output().unwrap();
        assert!(output.status.success(), "{point}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(hashes(&folder.path().join("run")), expected, "{point}");
        std::fs::remove_dir_all(folder.path().join("run")).unwrap();
    }
}

/// The system refuses to write, as on a full disk. Earlier checkpoints must remain, and the run
/// must continue from the last one when there is room.
#[test]
fn a_disk_that_is_full_costs_nothing_that_was_saved() {
    let folder = folder();
    assert!(command(folder.path(), "whole", &[]).status().unwrap().success());
    let expected = hashes(&folder.path().join("whole"));
    let dying = command(folder.path(), "run", &[]).env("BESPOKE_FAIL", "train.saved@4").output().unwrap();
    assert!(!dying.status.success());
    let checkpoints = || {
        let mut names: Vec<String> = std::fs::read_dir(folder.path().join("run/checkpoints"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let before = checkpoints();
    let weights =
        std::fs::metadata(folder.path().join("run/checkpoints/4/weights.safetensors")).unwrap().len();
    // Limit files to half the size of the weights: the log can grow, but the next checkpoint can't
    // be written.
    let limit = weights / 2 / 1024;
    let script = format!(
        "trap '' XFSZ; ulimit -f {limit}; exec \"$0\" train recipe.toml --out run --resume --set train.checkpoint_every=1"
    );
    let output = Command::new("bash")
        .args(["-c", &script, env!("CARGO_BIN_EXE_bespoke")])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("weights.safetensors") && said.contains("File too large"), "{said}");
    assert_eq!(checkpoints(), before, "nothing is half-written, nothing is lost");
    let output = command(folder.path(), "run", &["--resume"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(hashes(&folder.path().join("run")), expected);
}

/// A refused resumption must leave the run unchanged.
#[test]
fn a_refused_resumption_keeps_the_runs_recipe() {
    let folder = train::folder();
    bespoke(folder.path()).args(["train", "recipe.toml", "--out", "run"]).assert().success();
    let recipe = || std::fs::read(folder.path().join("run/recipe.toml")).unwrap();
    let before = recipe();
    write(folder.path(), "rows.jsonl", "{\"text\":\"other rows\"}\n");
    let more = ["train", "recipe.toml", "--out", "run", "--resume", "--set", "train.steps=9"];
    let said = stderr(&bespoke(folder.path()).args(more).assert().code(1));
    assert!(said.contains("made with another data.domains.rows"), "{said}");
    assert!(recipe() == before);
}

/// What another device needs may change, and the run says what that means.
#[test]
fn a_run_that_goes_on_in_other_parts_and_another_type_says_so() {
    let folder = train::folder();
    bespoke(folder.path()).args(["train", "recipe.toml", "--out", "run"]).assert().success();
    let resumed = |steps: &str, more: &[&str]| {
        let command = ["train", "recipe.toml", "--out", "run", "--resume", "--set", steps];
        stderr(&bespoke(folder.path()).args(command).args(more).assert().success())
    };
    let bits = "not bit for bit";
    let said = resumed("train.steps=5", &[]);
    assert!(!said.contains(bits) && !said.contains("train.micro_tokens"), "{said}");
    let other = ["--set", "train.micro_tokens=64", "--set", "train.precision=bf16"];
    let said = resumed("train.steps=6", &other);
    for part in [
        "train.micro_tokens is 64 from step 6 on; it was 1024",
        "the steps before step 6 were computed on the CPU in f32",
        bits,
    ] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    // Said once: from then on it is the run's own.
    assert!(!resumed("train.steps=7", &other).contains(bits));
}
