//! Any bytes as a dropped spoke: inspected with a post and without, and converted if it passes. It is a spoke or it is refused
//! with a reason; nothing panics, hangs, or asks for more memory than the file has.
//!
//! The bytes are a file as it is (GGUF, safetensors, zip), or, behind `PEFT` or `SIDE`, the two parts of a folder: the length
//! of the JSON part in two bytes, the JSON part, the weights. So the fuzzer reaches PEFT's rules without having to guess the
//! checksums of an archive.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bespoke::adapter::{Limits, Post, Spoke, inspect, to_served};
use libfuzzer_sys::{Corpus, fuzz_target};

/// A folder in memory where there is one: files on a disk would be the slowest part.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let folder = parent.join(format!("bespoke-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder can be made");
    folder
});

/// The post of the hostile corpus.
static POST: LazyLock<Post> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/post.gguf");
    Post::open(&path).expect("tests/corpus/post.gguf is a post")
});

/// As in the tests of the corpus: no file of a few kilobytes may make more of itself.
const LIMITS: Limits = Limits {
    max_bytes: 1 << 20,
    max_resident_bytes: 1 << 20,
    max_rank: 1024,
    max_tensors: 1024,
    max_header_bytes: 1 << 16,
};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some(dropped) = drop_into(&FOLDER, bytes) else { return Corpus::Reject };
    let alone = inspect(&dropped, None, &LIMITS);
    let fitting = inspect(&dropped, Some(&POST), &LIMITS);
    if let Ok(spoke) = fitting {
        judge(&spoke, bytes);
        assert!(alone.is_ok(), "a post can only make an inspection stricter: {}", alone.unwrap_err());
        let target = FOLDER.join("served.gguf");
        // A conversion may refuse (a number past F16), but what it makes is the same kind of thing, in the engine's form.
        if let Ok(served) = to_served(&dropped, &target, &POST, &LIMITS) {
            assert!(served.format.is_served() && served.kind() == spoke.kind());
            judge(&served, &fs::read(&target).expect("what was written can be read"));
            fs::remove_file(&target).expect("what was written can be removed");
        }
    }
    Corpus::Keep
});

/// What an inspection may say of a file of so many bytes.
fn judge(spoke: &Spoke, bytes: &[u8]) {
    assert!(spoke.resident_bytes <= LIMITS.max_resident_bytes);
    assert!(spoke.layers.iter().all(|&layer| layer < POST.layers));
    assert!(spoke.norms.iter().all(|norms| norms.down.is_finite() && norms.up.is_finite()));
    assert!(spoke.file_bytes <= LIMITS.max_bytes.max(bytes.len() as u64));
}

/// Writes the bytes as what they say they are.
fn drop_into(folder: &Path, bytes: &[u8]) -> Option<PathBuf> {
    let parts = |[json, weights]: [&str; 2]| {
        let length = usize::from(u16::from_le_bytes(bytes.get(4..6)?.try_into().ok()?));
        let dropped = folder.join(json.split('.').next()?);
        fs::create_dir_all(&dropped).expect("a folder can be made");
        fs::write(dropped.join(json), bytes.get(6..6 + length)?).expect("a part can be written");
        fs::write(dropped.join(weights), bytes.get(6 + length..)?).expect("a part can be written");
        Some(dropped)
    };
    match bytes.get(..4) {
        Some(b"PEFT") => parts(["adapter_config.json", "adapter_model.safetensors"]),
        Some(b"SIDE") => parts(["spoke.json", "spoke.safetensors"]),
        _ => {
            let dropped = folder.join("dropped");
            fs::write(&dropped, bytes).expect("a file can be written");
            Some(dropped)
        }
    }
}
