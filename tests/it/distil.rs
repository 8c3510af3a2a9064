//! Tests of distillation from the command line: a teacher that runs alongside the student, its
//! outputs on disk, interruption, and a changed teacher.

use std::path::Path;

use bespoke::model::hugging_face;
use bespoke::train::log;

use crate::program::MODEL;
use crate::real::Real;
use crate::train::{bespoke, folder, stderr, stdout, write};

/// A folder with a teacher in `runs/teacher`.
fn taught() -> tempfile::TempDir {
    let folder = folder();
    let teacher = ["train", "recipe.toml", "--out", "runs/teacher", "--set", "train.seed=7"];
    bespoke(folder.path()).args(teacher).assert().success();
    folder
}

/// The recipe's student with the teacher's tokenizer and this key of `[distil]`.
fn student(folder: &Path, command: &[&str], from: &str) -> assert_cmd::Command {
    let (mut program, mut settings) = (bespoke(folder), Vec::new());
    for set in ["data.tokenizer=runs/teacher/tokenizer.json", "distil.top=400", from] {
        settings.extend(["--set", set]);
    }
    // Settings in the command come last, so that they take precedence.
    let (words, own) =
        command.split_at(command.iter().position(|word| *word == "--set").unwrap_or(command.len()));
    program.args(words).args(settings).args(own);
    program
}

const BESIDE: &str = "distil.teacher=runs/teacher";

#[test]
fn a_teachers_words_are_written_through_a_kill_and_teach_what_it_does() {
    let folder = taught();
    let write = |out: &str| student(folder.path(), &["data", "distil", "recipe.toml", "--out", out], BESIDE);
    let whole = stdout(&write("whole").assert().success());
    let bytes = |out: &str| std::fs::read(folder.path().join(out).join("teacher.safetensors")).unwrap();
    // Killed after its second row, it continues with the rows that exist.
    write("killed").env("BESPOKE_FAIL", "distil.said#2").assert().failure();
    assert!(folder.path().join("killed/teacher.partial").exists());
    assert!(!folder.path().join("killed/teacher.safetensors").exists());
    let resumed = stdout(&write("killed").assert().success());
    assert!(
        whole.starts_with("whole: 9 documents") && resumed.contains("of them written before"),
        "{whole}{resumed}"
    );
    assert!(bytes("killed") == bytes("whole") && !folder.path().join("killed/teacher.partial").exists());

    let losses = |out: &str, from: &str| {
        student(folder.path(), &["train", "recipe.toml", "--out", out], from).assert().success();
        let steps = log::read(&folder.path().join(out)).unwrap();
        steps.into_iter().map(|step| step.terms.unwrap().divergence).collect::<Vec<_>>()
    };
    let beside = losses("beside", BESIDE);
    let stored = losses("stored", "distil.stored=whole");
    assert!(beside[0] > 1e-3 && beside.len() == 4, "{beside:?}");
    for (beside, stored) in beside.iter().zip(&stored) {
        assert!((beside - stored).abs() < 1e-4 * beside, "{beside} beside, {stored} stored");
    }

    // The outputs of another teacher are neither thrown away nor used for training at another
    // temperature.
    let before = bytes("killed");
    let warm = ["data", "distil", "recipe.toml", "--out", "killed", "--set", "distil.temperature=2.0"];
    let said = stderr(&student(folder.path(), &warm, BESIDE).assert().code(1));
    assert!(said.contains("written at temperature 1, distil.temperature is 2"), "{said}");
    let short = ["data", "distil", "recipe.toml", "--out", "killed", "--set", "distil.top=8"];
    let said = stderr(&student(folder.path(), &short, BESIDE).assert().code(1));
    assert!(said.contains("another teacher, tokenizer, distil.top") && bytes("killed") == before, "{said}");
}

#[test]
fn a_run_does_not_go_on_with_a_teacher_that_changed() {
    let folder = taught();
    let train = |more: &[&str]| {
        let command = ["train", "recipe.toml", "--out", "run"];
        student(folder.path(), &[&command[..], more].concat(), BESIDE)
    };
    train(&["--set", "train.steps=2"]).assert().success();
    let path = folder.path().join("runs/teacher");
    let model = hugging_face::load(&path).unwrap();
    let (name, var) =
        model.parameters.iter().next().map(|(name, var)| (name.to_owned(), var.clone())).unwrap();
    let before = var.as_detached_tensor().copy().unwrap();
    var.set(&(&before * 1.01).unwrap()).unwrap();
    hugging_face::save(&path, &model).unwrap();
    let said = stderr(&train(&["--resume"]).assert().code(1));
    assert!(said.contains("made with another distil teacher: SHA-256 "), "{said}");
    // Restored, the teacher continues.
    model.parameters.get(&name).unwrap().set(&before).unwrap();
    hugging_face::save(&path, &model).unwrap();
    train(&["--resume"]).assert().success();
    assert_eq!(log::read(&folder.path().join("run")).unwrap().len(), 4);
}

/// The shipped post is its own teacher, through a daemon that serves it. The tokens are the same
/// and the distributions nearly so: one side computes in llama.cpp from Q8_0, the other in Candle.
#[test]
fn a_daemon_teaches_whoever_has_its_tokens() {
    let Some(real) = Real::serve(|_| {}, |_| {}) else { return };
    let folder = folder();
    let (model, endpoint) = (std::path::absolute(MODEL).unwrap(), real.daemon.address);
    let recipe = format!(
        "[base]\npath = {model:?}\n[adapter.lora]\nrank = 2\nalpha = 4\n[distil]\nendpoint = \"http://{endpoint}\"\ntop = 64\n\
         [train]\nsteps = 1\nbatch = 1\nseq_len = 64\nseed = 1\ncheckpoint_every = 1\neval_every = 1\n[data]\n\
         eval_rows = 2\n[data.domains.rows]\ntrain = [\"rows.jsonl\"]\neval = [\"rows.jsonl\"]\n"
    );
    write(folder.path(), "served.toml", &recipe);
    bespoke(folder.path()).args(["train", "served.toml", "--out", "run"]).assert().success();
    let terms = log::read(&folder.path().join("run")).unwrap()[0].terms.unwrap();
    assert!(terms.cross_entropy > 0.5 && (0.0..0.01).contains(&terms.divergence), "{terms:?}");

    // On tasks that it was trained on, the teacher ends answers where they end.
    let own = "[base]\npath = MODEL\n[adapter.lora]\nrank = 2\nalpha = 4\n[distil]\nendpoint = \"ENDPOINT\"\ntop = 64\n[train]\nsteps = 1\n\
        batch = 1\nseq_len = 768\nseed = 1\ncheckpoint_every = 1\neval_every = 1\n[data]\neval_rows = 1\n\
        [data.domains.encoding]\ngenerator = \"encoding\"\n[[data.stages]]\nmax_event_chars = 60\n";
    let own = own.replace("MODEL", &format!("{model:?}")).replace("ENDPOINT", &format!("http://{endpoint}"));
    write(folder.path(), "own.toml", &own);
    bespoke(folder.path()).args(["train", "own.toml", "--out", "own"]).assert().success();
    let terms = log::read(&folder.path().join("own")).unwrap()[0].terms.unwrap();
    assert!(terms.cross_entropy < 0.5 && (0.0..0.01).contains(&terms.divergence), "{terms:?}");

    let endpoint = format!("distil.endpoint=http://{endpoint}");
    let other = ["train", "recipe.toml", "--out", "other", "--set", "distil.top=64", "--set", &endpoint];
    let said = stderr(&bespoke(folder.path()).args(other).assert().code(1));
    assert!(said.contains("a teacher needs the student's tokenizer: it reads \"The retry"), "{said}");
}
