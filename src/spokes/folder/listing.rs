//! Lists the folder: one fingerprint per entry, without reading content or following links.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::counts;

/// Most entries of the folder that are listed. Further ones wait until others are gone.
const MOST: usize = 100_000;
/// Most files that are checked in a folder that is one spoke. A spoke has three or four.
const MOST_PARTS: usize = 64;

/// Metadata of a file that changes whenever its content does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Size in bytes; for a folder, of the files in it.
    pub size: u64,
    /// Modification time of the content in nanoseconds since 1970; for a folder, the latest in it.
    pub modified: i64,
    /// Change time of the content or the inode. Unlike `modified`, it can't be set back.
    pub changed: i64,
    /// Inode number; for a folder, a mix of all of them.
    pub inode: u64,
}

impl Fingerprint {
    /// Combines the fingerprint with that of another file.
    fn join(&mut self, part: &Self) {
        self.size = self.size.saturating_add(part.size);
        self.modified = self.modified.max(part.modified);
        self.changed = self.changed.max(part.changed);
        self.inode = self.inode.rotate_left(7) ^ part.inode;
    }
}

/// Entries of the folder that can be spokes.
#[derive(Debug, Default)]
pub struct Listing {
    /// Device and inode of the folder itself.
    pub folder: (u64, u64),
    /// Fingerprints by name.
    pub entries: BTreeMap<String, Fingerprint>,
    /// Number of entries left out because their names aren't UTF-8.
    pub unnameable: usize,
    /// Whether there were more entries than are listed.
    pub cut: bool,
}

/// Lists the whole folder.
///
/// # Errors
/// The folder doesn't exist or can't be read, or the metadata of one of its entries can't be read.
/// An entry that vanishes meanwhile is no error.
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

/// Fingerprint of one entry; `None` if it doesn't exist or is a folder that can't be a spoke.
///
/// # Errors
/// The entry's metadata can't be read, so its state is unknown.
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
    // A safetensors file may have its configuration next to it.
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

/// Files that mark a folder as a spoke, complete or not.
const PARTS: [&str; 4] =
    ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "spoke.safetensors"];

/// A folder that contains files of an adapter is one spoke. Any other folder is ignored.
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
