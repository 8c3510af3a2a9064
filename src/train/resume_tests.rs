//! What a resumed run may change, and what older checkpoints lack.

use super::checkpoint::{self, Checkpoint};
use super::log;
use super::tests::{run, small_run};

#[test]
fn a_resumed_run_takes_other_parts_and_a_checkpoint_without_a_position() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&small_run(folder.path(), &["train.steps=2"]), &out, false).unwrap();
    let checkpoint = out.join("checkpoints/2");
    let recipe = small_run(folder.path(), &["train.steps=4", "train.micro_tokens=96"]);
    let changed = checkpoint::changed(&checkpoint, &recipe).unwrap();
    assert_eq!(changed, [(checkpoint::MICRO_TOKENS, Some(1024.0), Some(96.0))]);
    // As it was written before the position in the data was kept.
    let rewritten = |name: &str, change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let path = checkpoint.join(name);
        let mut value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        change(&mut value);
        crate::atomic_file::write(&path, &serde_json::to_vec(&value).unwrap()).unwrap();
        crate::digest::Digest::of_reader(fs_err::File::open(path).unwrap()).unwrap()
    };
    let state = rewritten("state.json", &|state| {
        assert!(state.remove("data").is_some() && state.remove("place").is_some());
    });
    rewritten("manifest.json", &|manifest| {
        manifest.insert("state.json".into(), state.to_string().into());
    });
    assert!(Checkpoint::load(&checkpoint, &recipe).unwrap().state.data.is_beginning());
    run(&recipe, &out, true).unwrap();
    let state = Checkpoint::load(&out.join("checkpoints/4"), &recipe).unwrap().state;
    assert!(!state.data.is_beginning() && state.place.as_deref() == Some("the CPU in f32"), "{state:?}");
}

#[test]
fn a_run_that_broke_down_goes_on_with_lower_rates() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&small_run(folder.path(), &["train.steps=2"]), &out, false).unwrap();
    let lower = [
        "train.steps=4",
        "train.muon.lr=0.001",
        "train.adamw.lr=0.0001",
        "train.clip=0.5",
        "train.warmup=0.5",
        "train.floor=0.0",
    ];
    let recipe = small_run(folder.path(), &lower);
    let changed = checkpoint::changed(&out.join("checkpoints/2"), &recipe).unwrap();
    assert_eq!(changed.len(), 5);
    assert_eq!(changed[4], ("train.clip", Some(1.0), Some(0.5)));
    // Rates of groups are listed only if a recipe sets them.
    let own = small_run(folder.path(), &[&lower[..], &["train.adamw.vector_lr=0.0001"]].concat());
    let changed = checkpoint::changed(&out.join("checkpoints/2"), &own).unwrap();
    assert_eq!((changed.len(), changed[2]), (6, ("train.adamw.vector_lr", None, Some(0.0001))));
    run(&recipe, &out, true).unwrap();
    assert_eq!(log::read(&out).unwrap().len(), 4);
}

#[test]
fn a_checkpoint_of_other_rows_is_refused_with_both_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let held_out = folder.path().join("held-out.jsonl");
    crate::atomic_file::write(&held_out, b"{\"text\":\"one two\"}\n").unwrap();
    let eval = format!("data.domains.rows.eval=[{held_out:?}]");
    let recipe = |steps: &str| small_run(folder.path(), &[steps, &eval]);
    run(&recipe("train.steps=2"), &out, false).unwrap();
    crate::atomic_file::write(&held_out, b"{\"text\":\"one three\"}\n").unwrap();
    let error = run(&recipe("train.steps=4"), &out, true).unwrap_err();
    let said = "checkpoints/2: made with another data.domains.rows.eval: SHA-256 ";
    assert!(error.to_string().contains(said), "{error}");
    assert!(error.hint().unwrap().contains("--out"));
    crate::atomic_file::write(&held_out, b"{\"text\":\"one two\"}\n").unwrap();
    run(&recipe("train.steps=4"), &out, true).unwrap();
}
