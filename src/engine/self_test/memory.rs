//! Remembers the result of the self-test: the same program, processor and post need no second test.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::cpu_features::{self, processor};
use crate::digest::Digest;
use crate::engine::computing::TestState;
use crate::engine::kernels::Kernels;

#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    state: TestState,
}

/// Identifies what the result depends on; `None` if a file can't be examined. Files are identified
/// by inode, length and time, as `make` does, because hashing a large post would take longer than
/// testing it.
pub fn key(program: &Path, model: &Path, kernels: Kernels) -> Option<String> {
    let file = |path: &Path| {
        let about = fs_err::metadata(path).ok()?;
        Some(format!(
            "{} {} {} {}.{:09}",
            about.dev(),
            about.ino(),
            about.len(),
            about.mtime(),
            about.mtime_nsec()
        ))
    };
    let parts = [
        env!("CARGO_PKG_VERSION").to_owned(),
        file(program)?,
        file(model)?,
        cpu_features::name().unwrap_or_default(),
        processor().usable().names().join(" "),
        kernels.to_string(),
    ];
    Digest::of_reader(parts.join("\n").as_bytes()).ok().map(|digest| digest.to_string())
}

/// The result that is stored under this key.
pub fn recall(path: &Path, key: &str) -> Option<TestState> {
    let kept: Kept = serde_json::from_slice(&fs_err::read(path).ok()?).ok()?;
    (kept.key == key).then_some(kept.state)
}

/// Stores the result. If that fails, the test runs again next time.
pub fn keep(path: &Path, key: &str, state: &TestState) {
    let kept = Kept { key: key.to_owned(), state: state.clone() };
    let written = serde_json::to_vec_pretty(&kept).map_err(std::io::Error::from);
    if let Err(error) = written.and_then(|text| atomic_file::write(path, &text)) {
        tracing::warn!(path = %path.display(), %error, "the self-test can't be remembered");
    }
}
