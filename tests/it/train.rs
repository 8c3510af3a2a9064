//! Tests of training from the command line: recipe, plan, run, interruption, resumption, and
//! inspection of runs.

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

pub fn bespoke(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("bespoke").unwrap();
    command.current_dir(folder);
    command
}

pub const RECIPE: &str = r#"
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
vocabulary = 292

[data.domains.rows]
train = ["rows.jsonl"]
eval = ["rows.jsonl"]
"#;

pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let row = |i: u32| {
        let text = format!("note {}", i % 9);
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}},\
             {{\"role\":\"assistant\",\"content\":\"{text}\"}}]}}\n"
        )
    };
    write(folder.path(), "rows.jsonl", &(0..40).map(row).collect::<String>());
    write(folder.path(), "recipe.toml", RECIPE);
    folder
}

pub fn write(folder: &Path, name: &str, text: &str) {
    bespoke::atomic_file::write(&folder.join(name), text.as_bytes()).unwrap();
}

pub fn stderr(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

pub fn stdout(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

#[test]
fn a_run_leaves_a_model_folder_and_can_be_prolonged() {
    let folder = folder();
    let out = folder.path().join("out");
    let first = bespoke(folder.path()).args(["train", "recipe.toml", "--out", "out"]).assert().success();
    let said = stderr(&first);
    assert!(said.contains("step 4/4 | loss ") && said.contains("held out: loss "), "{said}");
    assert_eq!(first.get_output().stdout, b"out\n");
    for name in
        ["model.safetensors", "config.json", "tokenizer.json", "log.jsonl", "loss.svg", "checkpoints/4"]
    {
        assert!(out.join(name).exists(), "{name}");
    }
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(config["vocab_size"], 292);

    let again = bespoke(folder.path()).args(["train", "recipe.toml", "--out", "out"]).assert().code(1);
    let said = stderr(&again);
    assert!(
        said.contains("out has checkpoints up to step 4") && said.contains("hint: continue with --resume"),
        "{said}"
    );
    let more = ["train", "recipe.toml", "--out", "out", "--resume", "--set", "train.steps=6"];
    bespoke(folder.path()).args(more).assert().success();
    let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 6);
    assert!(out.join("checkpoints/6/manifest.json").exists());
}

#[test]
fn runs_are_listed_shown_and_compared() {
    let folder = folder();
    let train = |id: &str, clip: &str| {
        let (out, clip) = (format!("runs/{id}"), format!("train.clip={clip}"));
        bespoke(folder.path())
            .args(["train", "recipe.toml", "--out", &out, "--set", &clip])
            .assert()
            .success();
    };
    train("one", "1.0");
    train("two", "0.25");
    let list = stdout(&bespoke(folder.path()).args(["runs", "list"]).assert().success());
    assert!(list.contains("one") && list.contains("finished") && list.contains("4/4"), "{list}");
    let list: Value = serde_json::from_str(&stdout(
        &bespoke(folder.path()).args(["runs", "list", "--json"]).assert().success(),
    ))
    .unwrap();
    assert_eq!((&list[1]["id"], &list[1]["steps"]), (&"two".into(), &4.into()));
    assert!(list[0]["best"][0].as_f64().unwrap() > 0.0);
    let show = ["runs", "show", "one", "--svg", "one.svg"];
    let shown = stdout(&bespoke(folder.path()).args(show).assert().success());
    assert!(
        shown.contains("4 of 4 steps") && shown.contains("smoothed") && shown.contains("token accuracy"),
        "{shown}"
    );
    let svg = std::fs::read_to_string(folder.path().join("one.svg")).unwrap();
    assert!(svg.matches("<polyline").count() == 3 && svg.contains("training (smoothed)"));
    let compare = ["runs", "compare", "one", "runs/two", "--svg", "both.svg"];
    let compared = stdout(&bespoke(folder.path()).args(compare).assert().success());
    assert!(compared.contains("train.clip") && compared.contains("0.25"), "{compared}");
    assert!(compared.contains("held out at step 4"), "{compared}");
    assert_eq!(
        std::fs::read_to_string(folder.path().join("both.svg")).unwrap().matches("<polyline").count(),
        6
    );
    let unknown = bespoke(folder.path()).args(["runs", "show", "three"]).assert().code(1);
    assert!(stderr(&unknown).contains("three: no such run; runs has: one, two"), "{}", stderr(&unknown));

    // An unreadable run is named, and the others are listed.
    write(&folder.path().join("runs/two"), "recipe.toml", "[train]\nstepz = 3\n");
    let listed = bespoke(folder.path()).args(["runs", "list"]).assert().success();
    assert!(stdout(&listed).contains("4/4") && stdout(&listed).contains("unreadable"), "{}", stdout(&listed));
    assert!(stderr(&listed).contains("two: runs/two/recipe.toml"), "{}", stderr(&listed));
    let listed = stdout(&bespoke(folder.path()).args(["runs", "list", "--json"]).assert().success());
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert!(listed[0]["steps"] == 4 && listed[1]["error"].as_str().unwrap().contains("stepz"), "{listed}");
}

#[test]
fn a_dry_run_prints_the_resolved_recipe_and_its_cost() {
    let folder = folder();
    let arguments = ["train", "recipe.toml", "--dry-run", "--set", "train.steps=100", "--gpu-price", "2.5"];
    let done = bespoke(folder.path()).args(arguments).assert().success();
    let said = stdout(&done);
    for part in [
        "steps = 100",
        "# computes on the CPU in f32",
        "# parameters: 11312 ",
        "128 tokens per step",
        "# tokens: 0.01M",
        "FLOPs",
        "# memory here, about ",
        "# time here: about ",
        "# time on one MI300X: about ",
        "# time on one H200: about ",
        "fits its 141.0 GB; $0.00 at $2.5/h",
    ] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn each_gpu_has_its_price_and_one_that_is_none_is_refused() {
    let folder = folder();
    let plan = |prices: &[&str]| {
        let mut command = bespoke(folder.path());
        command.args(["train", "recipe.toml", "--dry-run"]);
        command.args(prices.iter().map(|price| format!("--gpu-price={price}")));
        command.assert()
    };
    let said = stdout(&plan(&["h200=4.25", "2"]).success());
    assert!(said.contains(" its 192.0 GB; $0.00 at $2/h") && said.contains(" at $4.25/h"), "{said}");
    let alone = stdout(&plan(&["MI300X=1.5"]).success());
    assert!(alone.contains(" at $1.5/h") && alone.contains(" its 141.0 GB; $0.00 at $3/h"), "{alone}");
    for (price, part) in [
        ("H300=2", "H300 is not a GPU of the estimate"),
        ("H200=cheap", "expected DOLLARS"),
        ("-1", "DOLLARS"),
    ] {
        let said = stderr(&plan(&[price]).failure());
        assert!(said.contains(part), "{price}: {said}");
    }
}

/// Matrices that Muon updates have one moment, parameters that AdamW updates have two.
#[test]
fn a_dry_run_counts_the_moments_of_who_moves_the_matrices() {
    let folder = folder();
    let moments = |set: &str| {
        let arguments = ["train", "recipe.toml", "--dry-run", "--set", set];
        let said = stdout(&bespoke(folder.path()).args(arguments).assert().success());
        let (_, rest) = said.split_once("moments ").unwrap();
        rest.split_once(" kB").unwrap().0.parse::<f64>().unwrap()
    };
    // There are 11,312 parameters; the recipe's matrices are some of them.
    let (muon, adamw) = (moments("train.matrices=muon"), moments("train.matrices=adamw"));
    assert!(
        (adamw - 11.312 * 8.0).abs() < 0.1 && muon < adamw - 1.0 && muon > adamw / 2.0,
        "{muon}, {adamw}"
    );
}

#[test]
fn a_dry_run_counts_recomputing_and_the_teacher_but_not_this_machines_threads_on_a_gpu() {
    let folder = folder();
    let plan = |set: &[&str]| {
        let mut command = bespoke(folder.path());
        command.args(["train", "recipe.toml", "--dry-run", "--set", "train.threads=1"]);
        for set in set {
            command.args(["--set", set]);
        }
        stdout(&command.assert().success())
    };
    let line = |plan: &str, part: &str| plan.lines().find(|line| line.contains(part)).unwrap().to_owned();
    let (plainly, again) = (plan(&[]), plan(&["train.recompute=true"]));
    for part in ["arithmetic: ", "memory here"] {
        assert_ne!(line(&plainly, part), line(&again, part));
    }
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bespoke-tiny.gguf");
    let taught = plan(&[&format!("distil.teacher={model:?}")]);
    assert!(line(&plainly, "memory here").contains("teacher 0 B,"), "{plainly}");
    assert!(
        line(&taught, "memory here").contains("teacher ") && !taught.contains("teacher 0 B,"),
        "{taught}"
    );
    // This many threads need more memory than either card has, and only one part at a time is
    // processed there.
    let many = plan(&["train.threads=1024", "model.hidden_size=4096", "model.layers=32"]);
    assert!(line(&many, "memory here, about ").contains(" TB: "), "{many}");
    assert!(many.contains("fits its 141.0 GB") && !many.contains("does not fit"), "{many}");
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_gpu_that_the_program_is_not_built_for_is_said_before_anything_is_written() {
    let folder = folder();
    for more in [&[][..], &["--dry-run"]] {
        let arguments = ["train", "recipe.toml", "--out", "out", "--set", "train.device=cuda"];
        let failed = bespoke(folder.path()).args(arguments).args(more).assert().code(1);
        let said = stderr(&failed);
        assert!(said.contains("this program is built for the CPU alone"), "{said}");
        assert!(said.contains("hint: `make cuda` builds"), "{said}");
    }
    let checkpoints = folder.path().join("out/checkpoints");
    assert!(!checkpoints.exists());
}

#[test]
fn steps_are_measured_in_both_precisions() {
    let folder = folder();
    for set in
        [&["--precision", "f32", "--lora", "2"][..], &["--precision", "bf16", "--muon", "--device", "cpu"]]
    {
        let sizes = "bench train --shape tiny --rows 2 --seq 32 --micro-tokens 32 --steps 2 --warmup 1 --peak 0.1 --json";
        let done = bespoke(folder.path()).args(sizes.split(' ')).args(set).assert().success();
        let report: serde_json::Value = serde_json::from_str(&stdout(&done)).unwrap();
        assert_eq!(report["tokens_per_step"], 64, "{report}");
        let near_a_guess = |key: &str| (report[key].as_f64().unwrap() - 4352f64.ln()).abs() < 0.5;
        assert!(near_a_guess("first_loss") && near_a_guess("last_loss"), "{report}");
        let share = report["share_of_peak"].as_f64().unwrap() * 0.1 - report["tflops"].as_f64().unwrap();
        assert!(share.abs() < 1e-9 && report["peak_bytes"].as_u64() > Some(1 << 20), "{report}");
    }
}

/// Every shipped recipe can be read and says how to run it.
#[test]
fn shipped_recipes_are_whole() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(recipes).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        bespoke::train::recipe::Recipe::load(&path, &[]).unwrap();
        let header: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        let command = format!("bespoke train config/recipes/{}", path.file_name().unwrap().to_str().unwrap());
        assert!(header.contains(&command) && header.contains("memory"), "{}", path.display());
        count += 1;
    }
    assert!(count >= 8, "{count}");
}

#[test]
fn a_wrong_recipe_is_exit_code_78_and_a_wrong_row_is_named() {
    let folder = folder();
    let wrong = ["train", "recipe.toml", "--set", "model.heads=3", "--set", "model.kv_heads=2"];
    let failed = bespoke(folder.path()).args(wrong).assert().code(78);
    let said = stderr(&failed);
    assert!(said.contains("recipe.toml") && said.contains("model.heads is 3"), "{said}");
    let missing = ["train", "recipe.toml", "--set", "data.domains.rows.eval=[\"nowhere.jsonl\"]"];
    let said = stderr(&bespoke(folder.path()).args(missing).assert().code(78));
    assert!(said.contains("recipe.toml: data.domains.rows.eval: nowhere.jsonl doesn't exist"), "{said}");
    let unknown = ["train", "recipe.toml", "--set", "train.stepz=3"];
    let said = stderr(&bespoke(folder.path()).args(unknown).assert().code(78));
    assert!(said.contains("unknown field `stepz`") && said.contains("expected one of"), "{said}");
    for (rows, part) in [
        ("{\"messages\":[]}\n", "rows.jsonl, line 1: messages is empty"),
        (
            "{\"text\":\"a\"}\n{\"prompt\":\"a\",\"completion\":\"\"}\n",
            "rows.jsonl, line 2: completion is empty",
        ),
    ] {
        write(folder.path(), "rows.jsonl", rows);
        let said = stderr(&bespoke(folder.path()).args(["train", "recipe.toml"]).assert().code(1));
        assert!(said.contains(part), "{said}");
        assert!(!folder.path().join("runs/recipe/checkpoints").exists());
    }
    let long =
        format!("{{\"text\":\"a\"}}\n{{\"prompt\":\"and \",\"completion\":\"{}\"}}\n", "b ".repeat(90));
    write(folder.path(), "rows.jsonl", &long);
    let strict = ["train", "recipe.toml", "--set", "data.long_rows=error"];
    let said = stderr(&bespoke(folder.path()).args(strict).assert().code(1));
    assert!(said.contains("rows.jsonl, line 2") && said.contains("tokens; seq_len is 64"), "{said}");
}

/// A LoRA and a Felix spoke on the shipped post are written as files that the daemon loads; an
/// invalid base is refused.
#[test]
fn adapters_become_spokes_and_a_wrong_base_is_refused() {
    let folder = folder();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bespoke-tiny.gguf");
    let recipe = |adapter: &str| {
        format!(
            "[base]\npath = {model:?}\n[adapter]\ntask = \"notes\"\n{adapter}\n[train]\nsteps = 2\nbatch = 1\nseq_len = 64\n\
             seed = 1\ncheckpoint_every = 1\neval_every = 2\n[data]\neval_rows = 2\n[data.domains.rows]\n\
             train = [\"rows.jsonl\"]\neval = [\"rows.jsonl\"]\n"
        )
    };
    for (name, adapter) in [
        ("lora", "[adapter.lora]\nrank = 2\nalpha = 4\ntargets = [\"q_proj\", \"down_proj\"]"),
        ("felix", "[adapter.felix]\nspokes = 2\nrank = 4"),
    ] {
        write(folder.path(), "adapter.toml", &recipe(adapter));
        let out = format!("runs/{name}");
        let done = bespoke(folder.path()).args(["train", "adapter.toml", "--out", &out]).assert().success();
        let said = stderr(&done);
        assert!(said.contains("base: loss 0.") && said.contains("on 4 generated encodings"), "{said}");
        assert_eq!(stdout(&done), format!("{out}/{name}.gguf\n"));
        let spoke = folder.path().join(&out).join(format!("{name}.gguf"));
        let shown = bespoke(folder.path()).args(["spoke", "show", "--json"]).arg(&spoke).assert().success();
        let shown = stdout(&shown);
        assert!(shown.contains("\"notes\"") && shown.contains("qwen3"), "{shown}");
    }
    // A spoke that the daemon would not accept is refused before anything is read or written.
    write(folder.path(), "adapter.toml", &recipe("[adapter.felix]\nspokes = 8\nrank = 160"));
    let refused = ["train", "adapter.toml", "--out", "runs/large"];
    let said = stderr(&bespoke(folder.path()).args(refused).assert().code(1));
    assert!(said.contains("the daemon would refuse the adapter of this recipe"), "{said}");
    assert!(!folder.path().join("runs/large").exists());
    write(
        folder.path(),
        "adapter.toml",
        &recipe("[adapter.lora]\nrank = 2\nalpha = 4\ntargets = [\"q_prj\"]"),
    );
    let said = stderr(&bespoke(folder.path()).args(["train", "adapter.toml"]).assert().code(1));
    assert!(said.contains("\"q_prj\"; this decoder has down_proj, gate_proj, k_proj"), "{said}");

    // A text unlike anything in training.
    let lora = recipe("[adapter.lora]\nrank = 2\nalpha = 4");
    write(folder.path(), "adapter.toml", &lora);
    let letter = |i: u32| char::from(b'!' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 90);
    write(folder.path(), "noise.txt", &(1..400).map(letter).collect::<String>());
    let noise = ["train", "adapter.toml", "--out", "runs/noise", "--set", "base.reference=noise.txt"];
    let said = stderr(&bespoke(folder.path()).args(noise).assert().code(1));
    assert!(said.contains("bespoke-tiny.gguf") && said.contains("loss per token on noise.txt is"), "{said}");
    assert!(!folder.path().join("runs/noise/checkpoints").exists());

    // Another tokenizer than the base's, and more tokens than it has positions.
    let other = bespoke(folder.path()).args(["train", "recipe.toml", "--out", "other"]).assert().success();
    drop(other);
    let tokenizer =
        ["train", "adapter.toml", "--out", "runs/t", "--set", "data.tokenizer=other/tokenizer.json"];
    let said = stderr(&bespoke(folder.path()).args(tokenizer).assert().code(1));
    assert!(said.contains("its tokenizer (4096 entries") && said.contains("(292 entries"), "{said}");
    let long = ["train", "adapter.toml", "--out", "runs/l", "--set", "train.seq_len=4096"];
    let said = stderr(&bespoke(folder.path()).args(long).assert().code(1));
    assert!(said.contains("it has 2048 positions, and seq_len is 4096"), "{said}");
}

/// With a base folder that is not exported yet, an adapter names the post that its export would be,
/// and other posts refuse the adapter.
#[test]
fn an_adapter_for_a_folder_is_one_for_its_exports() {
    let folder = folder();
    let base = ["train", "recipe.toml", "--out", "runs/base"];
    bespoke(folder.path()).args(base).assert().success();
    let recipe = "[base]\npath = \"runs/base\"\nreference = \"note.txt\"\nreference_bound = 100.0\n[adapter]\ntask = \"notes\"\n[adapter.lora]\n\
        rank = 2\nalpha = 4\n[train]\nsteps = 2\nbatch = 1\nseq_len = 64\nseed = 1\ncheckpoint_every = 2\n\
        eval_every = 2\n[data]\neval_rows = 2\n[data.domains.rows]\ntrain = [\"rows.jsonl\"]\neval = [\"rows.jsonl\"]\n";
    write(folder.path(), "adapter.toml", recipe);
    write(folder.path(), "note.txt", "note 1 note 2");
    let done =
        bespoke(folder.path()).args(["train", "adapter.toml", "--out", "runs/notes"]).assert().success();
    assert_eq!(stdout(&done), "runs/notes/adapter\n");
    bespoke(folder.path()).args(["export", "runs/base", "base.gguf", "--type", "F16"]).assert().success();
    let show = |post: &Path| {
        let mut command = bespoke(folder.path());
        command.args(["spoke", "show", "runs/notes/adapter", "--json", "--post"]).arg(post);
        command.assert()
    };
    let shown: Value = serde_json::from_str(&stdout(&show(Path::new("base.gguf")).success())).unwrap();
    assert_eq!((&shown["task"], &shown["architecture"]), (&"notes".into(), &"llama".into()), "{shown}");
    assert!(shown["post"].as_str().is_some_and(|hash| hash.len() == 64), "{shown}");
    let other = bespoke(folder.path())
        .args(["train", "recipe.toml", "--out", "runs/other", "--set", "train.seed=9"])
        .assert();
    other.success();
    bespoke(folder.path()).args(["export", "runs/other", "other.gguf", "--type", "F16"]).assert().success();
    let said = stderr(&show(Path::new("other.gguf")).code(1));
    assert!(said.contains("post"), "{said}");
}

#[test]
fn a_model_from_nothing_needs_a_posts_tokenizer() {
    let folder = folder();
    let foreign =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/tokenizers/qwen2/tokenizer.json");
    let set = format!("data.tokenizer={foreign:?}");
    let said = stderr(&bespoke(folder.path()).args(["train", "recipe.toml", "--set", &set]).assert().code(1));
    assert!(said.contains("qwen2/tokenizer.json: token 0 is ") && said.contains("<|pad|>"), "{said}");
}

#[test]
fn two_processes_do_not_write_one_run() {
    let folder = folder();
    let held = bespoke::atomic_file::make_folder(&folder.path().join("runs/recipe"))
        .and_then(|()| bespoke::atomic_file::lock(&folder.path().join("runs/recipe/.lock")));
    let held = held.unwrap().unwrap();
    let said = stderr(&bespoke(folder.path()).args(["train", "recipe.toml"]).assert().code(1));
    assert!(
        said.contains("runs/recipe: another process is writing there") && said.contains("hint: "),
        "{said}"
    );
    drop(held);
    bespoke(folder.path()).args(["train", "recipe.toml"]).assert().success();
}

#[test]
fn a_base_that_is_not_finite_is_refused_by_tensor() {
    let folder = folder();
    bespoke(folder.path()).args(["train", "recipe.toml", "--out", "base"]).assert().success();
    let path = folder.path().join("base/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    bespoke::atomic_file::write(&path, &bytes).unwrap();
    let model = RECIPE.find("[model]").unwrap();
    let train = RECIPE.find("[train]").unwrap();
    let text = format!("{}[base]\npath = \"base\"\n{}", &RECIPE[..model], &RECIPE[train..]);
    write(folder.path(), "continue.toml", &text);
    let said = stderr(&bespoke(folder.path()).args(["train", "continue.toml"]).assert().code(1));
    assert!(
        said.contains("base base: tensor ") && said.contains("is NaN; expected a finite number"),
        "{said}"
    );
}
