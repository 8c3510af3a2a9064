//! What a resumed run may change, and what older checkpoints lack.

use super::checkpoint::{self, Checkpoint};
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
