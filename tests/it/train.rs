//! Training from the command line: recipe, plan, run, interruption, resumption.

use std::path::Path;

use assert_cmd::Command;

fn bespoke(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("bespoke").unwrap();
    command.current_dir(folder);
    command
}

const RECIPE: &str = r#"
[model]
family = "llama"
hidden_size = 16
layers = 1
heads = 2
kv_heads = 1
head_dim = 8
ffn = 24
max_position = 96
tied = false

[train]
steps = 4
batch = 2
seq_len = 64
seed = 1
checkpoint_every = 2
eval_every = 2

[data]
train = ["rows.jsonl"]
eval = ["rows.jsonl"]
vocabulary = 292
"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let row = |i: u32| {
        let text = format!("note {}", i % 9);
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}},\
             {{\"role\":\"assistant\",\"content\":\"{text}\"}}]}}\n"
        )
    };
    bespoke::durable::write(
        &folder.path().join("rows.jsonl"),
        (0..40).map(row).collect::<String>().as_bytes(),
    )
    .unwrap();
    bespoke::durable::write(&folder.path().join("recipe.toml"), RECIPE.as_bytes()).unwrap();
    folder
}

#[test]
fn a_run_leaves_a_model_folder_and_can_be_prolonged() {
    let folder = folder();
    let out = folder.path().join("out");
    let first = bespoke(folder.path()).args(["train", "recipe.toml", "--out", "out"]).assert().success();
    let said = String::from_utf8(first.get_output().stderr.clone()).unwrap();
    assert!(said.contains("step 4/4 | loss ") && said.contains("held out: loss "), "{said}");
    assert_eq!(first.get_output().stdout, b"out\n");
    for name in
        ["model.safetensors", "config.json", "tokenizer.json", "log.jsonl", "loss.svg", "checkpoints/4"]
    {
        assert!(out.join(name).exists(), "{name}");
    }
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(config["vocab_size"], 292);

    let more = ["train", "recipe.toml", "--out", "out", "--resume", "--set", "train.steps=6"];
    bespoke(folder.path()).args(more).assert().success();
    let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 6);
    assert!(out.join("checkpoints/6/manifest.json").exists());
}

#[test]
fn a_dry_run_prints_the_resolved_recipe_and_its_cost() {
    let folder = folder();
    let arguments = ["train", "recipe.toml", "--dry-run", "--set", "train.steps=100"];
    let done = bespoke(folder.path()).args(arguments).assert().success();
    let said = String::from_utf8(done.get_output().stdout.clone()).unwrap();
    for part in ["steps = 100", "# parameters: 11312 ", "128 tokens per step", "# tokens: 0.01M", "FLOPs"] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn a_wrong_recipe_is_exit_code_78_and_a_wrong_row_is_named() {
    let folder = folder();
    let wrong = ["train", "recipe.toml", "--set", "model.heads=3", "--set", "model.kv_heads=2"];
    let failed = bespoke(folder.path()).args(wrong).assert().code(78);
    let said = String::from_utf8(failed.get_output().stderr.clone()).unwrap();
    assert!(said.contains("recipe.toml") && said.contains("model.heads is 3"), "{said}");
    bespoke::durable::write(&folder.path().join("rows.jsonl"), b"{\"messages\":[]}\n").unwrap();
    let failed = bespoke(folder.path()).args(["train", "recipe.toml"]).assert().code(1);
    let said = String::from_utf8(failed.get_output().stderr.clone()).unwrap();
    assert!(said.contains("rows.jsonl, line 1") && said.contains("messages is empty"), "{said}");
}
