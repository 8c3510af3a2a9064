//! Tests of hostile spokes: each kind is refused with its own code before any of its bytes are used
//! in computation.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bespoke::adapter::{self, Limits, Post, Refusal, Spoke};
use bespoke::atomic_file;
use bespoke::engine::reference::Reference;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::spoke_corpus::{all, embedding};
use crate::spoke_files::{felix, lora, peft_config, peft_weights, post};

const CORPUS: &str = "tests/corpus/spokes";
/// The post that the corpus is checked against. It is stored with the corpus for the fuzzer.
const POST: &str = "tests/corpus/post.gguf";
/// Maximum time for one of these small files, in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

fn tiny_post(folder: &Path, tied: bool) -> Post {
    let path = folder.join("post.gguf");
    atomic_file::write(&path, &post(tied).bytes()).unwrap();
    Post::open(&path).unwrap()
}

fn inspect(path: &Path, post: &Post) -> Result<Spoke, Refusal> {
    adapter::inspect(path, Some(post), &Limits::default())
}

fn code(path: &Path, post: &Post) -> &'static str {
    inspect(path, post).map_or_else(|refusal| refusal.code(), |_| "none")
}

#[test]
fn every_kind_of_hostile_file_is_refused_with_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let post = tiny_post(folder.path(), false);
    let (mut names, mut wrong) = (std::collections::HashSet::new(), Vec::new());
    for (name, bytes, expected) in all() {
        assert!(names.insert(name), "{name} is there twice");
        let path = folder.path().join(name);
        atomic_file::write(&path, &bytes).unwrap();
        let start = Instant::now();
        let result = inspect(&path, &post);
        assert!(start.elapsed() < PATIENCE, "{name} took {:?}", start.elapsed());
        let found = result.as_ref().err().map(Refusal::code);
        if found != expected {
            wrong.push(format!("{name} is refused as {found:?}, expected {expected:?}: {result:?}"));
        } else if let Err(refusal) = result {
            assert!(refusal.to_string().starts_with(&path.display().to_string()), "{name}: {refusal}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A user who reads a code in `bespoke spokes` must find it in the documentation.
#[test]
fn every_code_of_the_corpus_is_documented() {
    let text = std::fs::read_to_string("docs/spoke-formats.md").unwrap();
    let missing: Vec<_> = all()
        .into_iter()
        .filter_map(|(.., code)| code)
        .filter(|code| !text.contains(&format!("`{code}`")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The corpus on disk must equal this one. `BESPOKE_WRITE_CORPUS=1` writes it.
#[test]
fn the_corpus_for_the_fuzzer_is_up_to_date() {
    let mut files: Vec<_> =
        all().into_iter().map(|(name, bytes, _)| (Path::new(CORPUS).join(name), bytes)).collect();
    files.push((POST.into(), post(false).bytes()));
    if std::env::var_os("BESPOKE_WRITE_CORPUS").is_some() {
        for (path, bytes) in &files {
            atomic_file::write(path, bytes).unwrap();
        }
    }
    for (path, bytes) in &files {
        assert!(std::fs::read(path).is_ok_and(|found| found == *bytes), "{} is another", path.display());
    }
    let there = std::fs::read_dir(CORPUS).unwrap().count();
    assert_eq!(there + 1, files.len(), "files in {CORPUS}");
    let size: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(size < 1 << 20, "{size} bytes");
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let root = tempfile::tempdir().unwrap();
    let post = tiny_post(root.path(), false);
    let place = |name: &str| root.path().join(name);
    atomic_file::write(&place("lora.gguf"), &lora().bytes()).unwrap();
    std::fs::create_dir(place("folder")).unwrap();
    assert_eq!(code(&place("folder"), &post), "directory");
    assert_eq!(code(&place("nowhere"), &post), "not_found");
    assert!(std::process::Command::new("mkfifo").arg(place("fifo")).status().unwrap().success());
    assert_eq!(code(&place("fifo"), &post), "fifo");
    for (link, to) in [("to-file", "lora.gguf"), ("to-folder", "folder"), ("to-nothing", "nowhere")] {
        std::os::unix::fs::symlink(place(to), place(link)).unwrap();
        assert_eq!(code(&place(link), &post), "symlink");
    }
    let _socket = std::os::unix::net::UnixListener::bind(place("socket")).unwrap();
    assert_eq!(code(&place("socket"), &post), "socket");
    assert_eq!(code(Path::new("/dev/zero"), &post), "device");
    std::fs::set_permissions(place("lora.gguf"), PermissionsExt::from_mode(0o000)).unwrap();
    // Root can read everything.
    if std::fs::File::open(place("lora.gguf")).is_err() {
        assert_eq!(code(&place("lora.gguf"), &post), "unreadable");
    }
}

#[test]
fn a_folder_is_held_to_the_same_rules_part_by_part() {
    let root = tempfile::tempdir().unwrap();
    let post = tiny_post(root.path(), false);
    let folder = root.path().join("adapter");
    let [config, weights] =
        ["adapter_config.json", "adapter_model.safetensors"].map(|name| folder.join(name));
    atomic_file::write(&config, peft_config().to_string().as_bytes()).unwrap();
    assert_eq!(code(&folder, &post), "missing_file");
    atomic_file::write(&folder.join("adapter_model.bin"), b"\x80\x02").unwrap();
    assert_eq!(code(&folder, &post), "pickle");
    atomic_file::write(&weights, &peft_weights()).unwrap();
    assert_eq!(code(&folder, &post), "none");
    // With a Felix spoke in the same folder, one of the two would be ignored.
    let felix = folder.join("spoke.safetensors");
    atomic_file::write(&felix, &peft_weights()).unwrap();
    assert_eq!(code(&folder, &post), "two_spokes");
    std::fs::remove_file(&felix).unwrap();
    atomic_file::write(&weights, b"").unwrap();
    assert_eq!(code(&folder, &post), "empty_file");
    for part in [&weights, &config] {
        let away = root.path().join("away");
        std::fs::rename(part, &away).unwrap();
        std::os::unix::fs::symlink(&away, part).unwrap();
        let refusal = inspect(&folder, &post).unwrap_err();
        assert_eq!((refusal.code(), &refusal.path), ("symlink", part));
        std::fs::remove_file(part).unwrap();
        std::fs::create_dir(part).unwrap();
        assert_eq!(code(&folder, &post), "directory");
        std::fs::remove_dir(part).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(part).status().unwrap().success());
        assert_eq!(code(&folder, &post), "fifo");
        std::fs::remove_file(part).unwrap();
        std::fs::rename(&away, part).unwrap();
        atomic_file::write(&weights, &peft_weights()).unwrap();
    }
}

#[test]
fn limits_hold() {
    let root = tempfile::tempdir().unwrap();
    let post = tiny_post(root.path(), false);
    let path = root.path().join("lora.gguf");
    atomic_file::write(&path, &lora().bytes()).unwrap();
    let with = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        adapter::inspect(&path, Some(&post), &limits).unwrap_err().code()
    };
    assert_eq!(with(|limits| limits.max_bytes = 100), "too_large");
    assert_eq!(with(|limits| limits.max_header_bytes = 100), "header_limit");
    assert_eq!(with(|limits| limits.max_tensors = 3), "too_many");
    assert_eq!(with(|limits| limits.max_rank = 1), "rank_limit");
    assert_eq!(with(|limits| limits.max_resident_bytes = 100), "too_large_in_memory");
    let path = root.path().join("felix.gguf");
    atomic_file::write(&path, &felix().bytes()).unwrap();
    let limits = Limits { max_resident_bytes: 100, ..Limits::default() };
    assert_eq!(adapter::inspect(&path, Some(&post), &limits).unwrap_err().code(), "too_large_in_memory");
    let limits = Limits { max_rank: 5, ..Limits::default() };
    assert_eq!(adapter::inspect(&path, Some(&post), &limits).unwrap_err().code(), "rank_limit");
}

#[test]
fn an_embedding_can_be_changed_only_where_it_is_not_the_output_too() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("embedding.gguf");
    atomic_file::write(&path, &embedding().bytes()).unwrap();
    assert_eq!(code(&path, &tiny_post(root.path(), false)), "none");
    assert_eq!(code(&path, &tiny_post(root.path(), true)), "tied_embedding");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let post = tiny_post(root.path(), false);
    let path = root.path().join("cut");
    for (name, bytes, expected) in all() {
        if expected.is_some() {
            continue;
        }
        // An archive ends with a record that is needed. Of a GGUF file, only padding may be
        // missing.
        let needed = bytes.len() - bytes.iter().rev().take_while(|&&byte| byte == 0).count();
        for length in (0..needed - 4).step_by(11) {
            atomic_file::write(&path, &bytes[..length]).unwrap();
            assert!(inspect(&path, &post).is_err(), "{name} cut to {length} of {}", bytes.len());
        }
    }
}

#[test]
fn damaged_spokes_never_panic_and_never_take_long() {
    let root = tempfile::tempdir().unwrap();
    let post = tiny_post(root.path(), false);
    let path = root.path().join("damaged");
    let files: Vec<Vec<u8>> = all().into_iter().filter(|kind| kind.2.is_none()).map(|kind| kind.1).collect();
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)];
    let strategy = (0..files.len(), proptest::collection::vec((any::<prop::sample::Index>(), byte), 1..5));
    let refused = std::cell::Cell::new(0);
    let run = |(file, edits): (usize, Vec<(prop::sample::Index, u8)>)| {
        let mut bytes = files[file].clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, &bytes))?;
        let start = Instant::now();
        if inspect(&path, &post).is_err() {
            refused.set(refused.get() + 1);
        }
        prop_assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
        Ok(())
    };
    let cases = std::env::var("BESPOKE_FUZZ_CASES").map_or(3000, |n| n.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    TestRunner::new_with_rng(config, rng).run(&strategy, run).unwrap();
    assert!(refused.get() > cases / 4, "only {} of {cases} were refused", refused.get());
}

#[test]
fn llama_cpp_survives_every_damaged_lora_that_passes() {
    let root = tempfile::tempdir().unwrap();
    let post = tiny_post(root.path(), false);
    let mut reference = Reference::open(&root.path().join("post.gguf")).unwrap();
    let path = root.path().join("damaged.gguf");
    let files = [lora().bytes(), embedding().bytes(), lora().text("general.name", "a spoke").bytes()];
    let header = lora().header().len();
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)];
    let strategy = (0..files.len(), proptest::collection::vec((0..header + 64, byte), 1..3));
    let passed = std::cell::Cell::new(0);
    let mut run = |(file, edits): (usize, Vec<(usize, u8)>)| {
        let mut bytes = files[file].clone();
        for (at, value) in edits {
            bytes[at] = value;
        }
        atomic_file::write(&path, &bytes)?;
        if inspect(&path, &post).is_ok() {
            passed.set(passed.get() + 1);
            reference
                .logits_with(&path, &[1, 2, 3])
                .map_err(|error| TestCaseError::fail(error.to_string()))?;
        }
        Ok(())
    };
    let run = std::cell::RefCell::new(&mut run);
    let cases = std::env::var("BESPOKE_FUZZ_CASES").map_or(500, |n| n.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]);
    TestRunner::new_with_rng(config, rng).run(&strategy, |case| (run.borrow_mut())(case)).unwrap();
    assert!(passed.get() > cases / 20, "only {} of {cases} reached llama.cpp", passed.get());
}

#[test]
fn a_file_replaced_while_it_is_pinned_is_one_or_the_other() {
    let root = tempfile::tempdir().unwrap();
    let post = tiny_post(root.path(), false);
    let (path, staged) = (root.path().join("spoke.gguf"), root.path().join("staged"));
    let [one, other] = [lora().bytes(), felix().bytes()];
    atomic_file::write(&path, &one).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut files = [&other, &one].into_iter().cycle();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                atomic_file::write(&path, files.next().unwrap()).unwrap();
            }
        });
        for _ in 0..200 {
            let pinned = adapter::pin(&path, &staged, &Limits::default()).unwrap();
            let bytes = std::fs::read(&pinned.path).unwrap();
            assert!(bytes == one || bytes == other);
            assert_eq!(adapter::generation(&pinned.path, &Limits::default()).unwrap(), pinned.generation);
            inspect(&pinned.path, &post).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let names: Vec<_> = std::fs::read_dir(&staged).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "two contents, nothing half-made: {names:?}");
}

#[test]
fn several_parts_are_pinned_as_one() {
    let root = tempfile::tempdir().unwrap();
    let post = tiny_post(root.path(), false);
    let staged = root.path().join("staged");
    let folder = root.path().join("adapter");
    atomic_file::write(&folder.join("adapter_config.json"), peft_config().to_string().as_bytes()).unwrap();
    atomic_file::write(&folder.join("adapter_model.safetensors"), &peft_weights()).unwrap();
    atomic_file::write(&folder.join("training.log"), b"not part of it").unwrap();
    let pinned = adapter::pin(&folder, &staged, &Limits::default()).unwrap();
    assert_eq!(pinned.path, staged.join(pinned.generation.to_string()));
    assert_eq!(std::fs::read_dir(&pinned.path).unwrap().count(), 2);
    assert_eq!(adapter::generation(&pinned.path, &Limits::default()).unwrap(), pinned.generation);
    inspect(&pinned.path, &post).unwrap();
    // The configuration is part of the identity.
    let other = peft_config().to_string().replace("\"lora_alpha\":4", "\"lora_alpha\":8");
    atomic_file::write(&folder.join("adapter_config.json"), other.as_bytes()).unwrap();
    let changed = adapter::pin(&folder, &staged, &Limits::default()).unwrap();
    assert_ne!(changed.generation, pinned.generation);
    // Pinned again, the file stays where it is.
    assert_eq!(adapter::pin(&folder, &staged, &Limits::default()).unwrap(), changed);
    assert_eq!(std::fs::read_dir(&staged).unwrap().count(), 2);
}
