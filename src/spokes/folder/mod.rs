//! The watched folder: which entries can be spokes, their current state, and what has changed.

mod debounce;
mod listing;
mod watch;

pub use debounce::{Change, Scan};
pub use listing::{Fingerprint, Listing, list, look};
pub use watch::{Noticed, Watcher};

use crate::adapter::check_name;

/// Whether an entry of the folder can be a spoke. Hidden and unfinished files can't, nor notes and
/// side files that people keep next to spokes.
pub fn counts(entry: &str) -> bool {
    let lower = entry.to_ascii_lowercase();
    let unfinished = [".tmp", ".part", ".partial", ".crdownload", ".swp", "~"];
    let beside = [".md", ".txt", ".json", ".jsonl", ".toml", ".sha256"];
    !lower.starts_with('.')
        && !unfinished.iter().chain(&beside).any(|end| lower.ends_with(end))
        && !matches!(lower.as_str(), "lost+found" | "readme" | "license")
}

/// The name under which an entry is served: its file name without the extension of its format.
///
/// # Errors
/// What is wrong with the name, in words.
pub fn spoke_name(entry: &str) -> Result<&str, String> {
    let endings = [".gguf", ".safetensors", ".zip", ".pt", ".pth", ".bin", ".ckpt", ".pkl"];
    let cut = entry.len() - endings.iter().find(|end| ends_with(entry, end)).map_or(0, |end| end.len());
    let name = &entry[..cut];
    check_name(name)?;
    Ok(name)
}

/// Whether `entry` ends with `end`, ignoring case. Endings are ASCII, so a match starts at a
/// character boundary.
fn ends_with(entry: &str, end: &str) -> bool {
    entry.len() >= end.len()
        && entry.as_bytes()[entry.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_unfinished_or_a_note_does_not_count() {
        for entry in [
            ".hidden.gguf",
            "a.gguf.tmp",
            "a.part",
            "a.gguf~",
            "README.md",
            "notes.TXT",
            "encoding.json",
            "lost+found",
            "LICENSE",
            ".staged-x.tmp",
        ] {
            assert!(!counts(entry), "{entry}");
        }
        for entry in
            ["a.gguf", "b.safetensors", "peft-folder", "c.zip", "d.pt", "e", "~f", "tmp.gguf", "é.gguf"]
        {
            assert!(counts(entry), "{entry}");
        }
    }

    #[test]
    fn names_are_those_of_files_without_their_endings() {
        for (entry, name) in [
            ("encoding.gguf", "encoding"),
            ("Encoding.v2.GGUF", "Encoding.v2"),
            ("peft_folder", "peft_folder"),
            ("a.zip", "a"),
            ("a.gguf.gguf", "a.gguf"),
            ("unknown.xyz", "unknown.xyz"),
        ] {
            assert_eq!(spoke_name(entry), Ok(name));
        }
        for entry in ["two words.gguf", "é.gguf", ".gguf", "a:b.gguf", "", &"x".repeat(101), "é"] {
            assert!(spoke_name(entry).is_err(), "{entry}");
        }
    }
}
