//! What the folder looks like now: one fingerprint per entry, without reading any content and without following links.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::counts;

/// Entries of the folder that are looked at; whatever is beyond waits until others are gone.
const MOST: usize = 100_000;
/// Files of a folder that is one spoke which are looked at: one has three or four.
const MOST_PARTS: usize = 64;

/// What a file looks like from outside; a change of its content changes it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Bytes; of a folder, those of the files in it.
    pub size: u64,
    /// When the content was last changed, in nanoseconds since 1970; of a folder, the latest in it.
    pub modified: i64,
    /// When the content or what is known of it was last changed: unlike the former, nobody can set it back.
    pub changed: i64,
    /// Number of the file on its device; of a folder, all of them mixed.
    pub inode: u64,
}

impl Fingerprint {
    /// Becomes that of itself and another file together.
    fn join(&mut self, part: &Self) {
        self.size = self.size.saturating_add(part.size);
        self.modified = self.modified.max(part.modified);
        self.changed = self.changed.max(part.changed);
        self.inode = self.inode.rotate_left(7) ^ part.inode;
    }
}

/// The entries that count.
#[derive(Debug, Default)]
pub struct Listing {
    /// Device and number of the folder itself.
    pub folder: (u64, u64),
    /// By their names.
    pub entries: BTreeMap<String, Fingerprint>,
    /// Entries that were left out since their names aren't UTF-8.
    pub unnameable: usize,
    /// Whether there were more than can be looked at.
    pub cut: bool,
}

/// Looks at the whole folder.
///
/// # Errors
/// The folder isn't there or can't be read, or one of its entries can't be looked at. An entry that vanishes meanwhile is no
/// error.
pub fn list(folder: &Path) -> io::Result<Listing> {
    let metadata = fs_err::metadata(folder)?;
    let mut listing = Listing { folder: (metadata.dev(), metadata.ino()), ..Listing::default() };
    for entry in fs_err::read_dir(folder)? {
        let Ok(name) = entry?.file_name().into_string() else {
            listing.unnameable += 1;
            continue;
        };
        if !counts(&name) {
            continue;
        }
        if listing.entries.len() >= MOST {
            listing.cut = true;
            break;
        }
        if let Some(print) = look(folder, &name)? {
            listing.entries.insert(name, print);
        }
    }
    Ok(listing)
}

/// Looks at one entry; `None` if it isn't there or is a folder that can't be a spoke.
///
/// # Errors
/// It can't be looked at: nothing is known about it.
pub fn look(folder: &Path, entry: &str) -> io::Result<Option<Fingerprint>> {
    let path = folder.join(entry);
    let metadata = match fs_err::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    if metadata.is_dir() {
        return Ok(look_inside(&path, &metadata));
    }
    let mut print = of(&metadata);
    // A safetensors file may have its configuration beside it.
    if let Some(stem) = entry.strip_suffix(".safetensors")
        && let Ok(beside) = fs_err::symlink_metadata(folder.join(format!("{stem}.json")))
    {
        print.join(&of(&beside));
    }
    Ok(Some(print))
}

fn of(metadata: &Metadata) -> Fingerprint {
    let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    Fingerprint {
        size: metadata.size(),
        modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
    }
}

/// Files that make a folder a spoke, whole or not.
const PARTS: [&str; 4] =
    ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "spoke.safetensors"];

/// A folder with files of an adapter in it is one spoke; any other is a person's own order of things.
fn look_inside(folder: &Path, metadata: &Metadata) -> Option<Fingerprint> {
    let mut whole = Fingerprint { size: 0, ..of(metadata) };
    let mut is_spoke = false;
    let mut names: Vec<_> =
        fs_err::read_dir(folder).ok()?.take(MOST_PARTS).flatten().map(|e| e.file_name()).collect();
    names.sort();
    for name in names {
        is_spoke |= PARTS.iter().any(|part| name == *part);
        let Ok(metadata) = fs_err::symlink_metadata(folder.join(&name)) else { continue };
        whole.join(&of(&metadata));
    }
    is_spoke.then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic_file;

    #[test]
    fn files_links_and_adapter_folders_are_listed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        atomic_file::write(&path("a.gguf"), b"1234").unwrap();
        atomic_file::write(&path("b.gguf.tmp"), b"x").unwrap();
        atomic_file::write(&path("peft/adapter_config.json"), b"{}").unwrap();
        atomic_file::write(&path("peft/adapter_model.safetensors"), b"12").unwrap();
        atomic_file::write(&path("photos/cat.jpg"), b"x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path("link.gguf")).unwrap();
        let listing = list(root.path()).unwrap();
        assert_eq!(listing.entries.keys().collect::<Vec<_>>(), ["a.gguf", "link.gguf", "peft"]);
        assert_eq!((listing.entries["a.gguf"].size, listing.entries["peft"].size), (4, 4));
        assert_eq!(look(root.path(), "nothing.gguf").unwrap(), None);
        assert!(list(&path("nowhere")).is_err());
    }

    #[test]
    fn a_fingerprint_changes_with_the_content_even_if_the_time_is_set_back() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("a.gguf");
        atomic_file::write(&file, b"one").unwrap();
        let before = look(root.path(), "a.gguf").unwrap().unwrap();
        let time = fs_err::metadata(&file).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let mut open = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
        std::io::Write::write_all(&mut open, b"two").unwrap();
        open.set_modified(time).unwrap();
        drop(open);
        let after = look(root.path(), "a.gguf").unwrap().unwrap();
        assert_eq!((before.size, before.modified, before.inode), (after.size, after.modified, after.inode));
        assert_ne!(before, after);
    }

    #[test]
    fn a_safetensors_file_changes_with_the_configuration_beside_it() {
        let root = tempfile::tempdir().unwrap();
        atomic_file::write(&root.path().join("a.safetensors"), b"x").unwrap();
        let alone = look(root.path(), "a.safetensors").unwrap().unwrap();
        atomic_file::write(&root.path().join("a.json"), b"{}").unwrap();
        let both = look(root.path(), "a.safetensors").unwrap().unwrap();
        assert_eq!((alone.size, both.size), (1, 3));
        assert_eq!(list(root.path()).unwrap().entries.len(), 1);
    }

    #[test]
    fn a_folder_changes_with_any_of_its_files() {
        let root = tempfile::tempdir().unwrap();
        atomic_file::write(&root.path().join("peft/adapter_config.json"), b"{}").unwrap();
        let before = look(root.path(), "peft").unwrap().unwrap();
        atomic_file::write(&root.path().join("peft/adapter_model.safetensors"), b"x").unwrap();
        assert_ne!(look(root.path(), "peft").unwrap().unwrap(), before);
    }
}
