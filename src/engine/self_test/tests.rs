//! Tests of the self-test, with children played by a shell script and with the real trial on the
//! shipped post.

use super::*;
use crate::engine::kernels::Form;

/// The result for a child that runs this script; `$*` are its arguments.
fn scripted(script: &str) -> Result<Tested, TestError> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("child");
    crate::atomic_file::write(&program, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let test = SelfTest { program, remembered: Some(folder.path().join("found")), memory: 1 << 30 };
    test.run(Path::new("post.gguf"), all())
}

/// Kernels that no test computes with.
fn all() -> Kernels {
    Kernels { attention: Some(Form::Avx2), product: Some(Form::Avx2), felix: Form::Avx2 }
}

fn line(line: &Line) -> String {
    format!("echo '{}'", serde_json::to_string(line).unwrap())
}

fn begin(stage: Stage, rows: u32) -> String {
    line(&Line::Begin { stage, rows })
}

fn done() -> String {
    line(&Line::Done { rows: vec![1, 2, 32, 512], note: None })
}

#[test]
fn a_kernel_that_crashes_is_left_out_by_name_and_the_rest_is_tried_again() {
    for (signal, name) in [("ILL", "SIGILL"), ("SEGV", "SIGSEGV"), ("ABRT", "SIGABRT")] {
        let script = format!(
            "case \"$*\" in *'--without product'*) {}; exit 0;; esac; echo noise; {}; {}; kill -{signal} $$",
            done(),
            begin(Stage::LlamaCpp, 512),
            begin(Stage::With(Kernel::Product), 32),
        );
        let found = scripted(&script).unwrap();
        assert_eq!(found.kernels, all().without(Kernel::Product));
        assert_eq!(found.state.outcome, Outcome::Faulty);
        let [(Kernel::Product, fault)] = &found.faults[..] else { panic!("{:?}", found.faults) };
        assert!(fault.contains(name) && fault.contains("32 rows"), "{fault}");
    }
}

#[test]
fn kernels_that_compute_wrong_numbers_are_left_out() {
    let wrong = |kernel| line(&Line::Wrong { kernel, what: "off by 0.5".to_owned() });
    let script = format!("{}; {}; {}", wrong(Kernel::Attention), wrong(Kernel::Felix), done());
    let found = scripted(&script).unwrap();
    assert_eq!(found.kernels, all().without(Kernel::Attention).without(Kernel::Felix));
    assert_eq!((found.faults.len(), found.state.outcome), (2, Outcome::Faulty));
}

#[test]
fn kernels_that_crash_only_together_are_both_left_out() {
    let script = format!(
        "case \"$*\" in *attention*product*) {}; exit 0;; esac; {}; kill -SEGV $$",
        done(),
        begin(Stage::Together, 1),
    );
    let found = scripted(&script).unwrap();
    assert_eq!((found.kernels.attention, found.kernels.product), (None, None));
}

#[test]
fn without_llama_cpp_there_is_nothing_to_serve() {
    for script in [format!("{}; kill -ILL $$", begin(Stage::LlamaCpp, 32)), "kill -ILL $$".to_owned()] {
        let error = scripted(&script).unwrap_err().to_string();
        assert!(error.contains("signal 4 (SIGILL, illegal instruction)"), "{error}");
        assert!(error.contains("hint: this program was compiled for"), "{error}");
    }
}

#[test]
fn what_says_nothing_of_kernels_leaves_them_as_they_are() {
    let begun = begin(Stage::With(Kernel::Product), 512);
    for script in [
        format!("{begun}; kill -KILL $$"),
        format!("{begun}; kill -TERM $$"),
        "echo 'no memory' >&2; exit 1".to_owned(),
        "exit 0".to_owned(),
    ] {
        let found = scripted(&script).unwrap();
        assert_eq!((found.kernels, found.state.outcome), (all(), Outcome::Unfinished), "{script}");
    }
    let nowhere = SelfTest { program: "/nowhere".into(), remembered: None, memory: 1 };
    let found = nowhere.run(Path::new("post.gguf"), all()).unwrap();
    assert_eq!(found.state.outcome, Outcome::Unfinished);
}

#[test]
fn what_passed_is_remembered_until_something_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (program, post) = (folder.path().join("child"), folder.path().join("post.gguf"));
    crate::atomic_file::write(&program, b"a").unwrap();
    crate::atomic_file::write(&post, b"b").unwrap();
    let path = folder.path().join("found.json");
    let key = || memory::key(&program, &post, all()).unwrap();
    let state = TestState { outcome: Outcome::Passed, rows: vec![1], seconds: 0.5, note: None };
    let first = key();
    memory::keep(&path, &first, &state);
    assert_eq!(memory::recall(&path, &key()), Some(state));
    crate::atomic_file::write(&post, b"c").unwrap();
    assert_ne!(key(), first, "another post");
    assert_eq!(memory::recall(&path, &key()), None);
    assert_ne!(memory::key(&program, &post, Kernels::OFF), memory::key(&program, &post, all()));
    assert_eq!(memory::key(&program, Path::new("/nowhere"), all()), None);
}

#[test]
fn the_shipped_post_passes() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bespoke-tiny.gguf");
    let mut lines = Vec::new();
    trial(&model, Kernels::best(), &mut |line| lines.push(line.clone())).unwrap();
    assert!(!lines.iter().any(|line| matches!(line, Line::Wrong { .. })), "{lines:?}");
    let Some(Line::Done { rows, .. }) = lines.last() else { panic!("{lines:?}") };
    assert_eq!(rows[..3], [1, 2, 32]);
}
