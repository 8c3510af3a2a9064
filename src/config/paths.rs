//! Default paths: configuration, model, spokes and state.

use std::path::{Path, PathBuf};

/// The configuration that is read if none is named, relative to the working directory.
pub const DEFAULT_CONFIG: &str = "config/bespoke.toml";

/// The shipped model, relative to the working directory or to the program's location.
const DEFAULT_MODEL: &str = "models/bespoke-tiny.gguf";

/// Finds the shipped model: in `models/` under the working directory, else near the program, either
/// in the repository that it was built in (`target/release/` is two folders down) or in
/// `share/bespoke/` of its prefix.
///
/// If it is in none of these places, returns the first of them, so that the error names it.
pub fn default_model() -> PathBuf {
    let program = std::env::current_exe().and_then(fs_err::canonicalize).ok();
    let folders = program.iter().flat_map(|program| program.ancestors().skip(1).take(4));
    let beside = folders
        .flat_map(|folder| [folder.join(DEFAULT_MODEL), folder.join("share/bespoke").join(DEFAULT_MODEL)]);
    let here = absolute(Path::new(DEFAULT_MODEL));
    std::iter::once(here.clone()).chain(beside).find(|place| place.is_file()).unwrap_or(here)
}

/// `$STATE_DIRECTORY` (set by systemd), else `$XDG_STATE_HOME/bespoke`, else
/// `~/.local/state/bespoke`.
pub(super) fn default_state() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("STATE_DIRECTORY")
        .or_else(|| set("XDG_STATE_HOME").map(|home| home.join("bespoke")))
        .or_else(|| set("HOME").map(|home| home.join(".local/state/bespoke")))
        .unwrap_or_else(|| absolute(Path::new("state")))
}

/// The absolute path; `path` itself if the working directory is gone.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
