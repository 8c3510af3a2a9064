//! Keeps refused spokes with their reasons, and removes copies that are no longer needed.
//!
//! A refused spoke has its own folder, `NAME-HASH/`, which also holds `reason.json`. A file
//! refused before it was copied has only the reason there, and the hash is that of the entry's
//! name. The dropped file itself stays in the watched folder. The oldest folders are removed when
//! all together exceed the limit.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;

use super::life::Reason;
use crate::adapter::Generation;
use crate::adapter::check_name;
use crate::atomic_file;

/// Most folders. Those with only a reason take hardly any bytes, but they take inodes.
const MOST: usize = 20_000;
/// Hex digits of the hash in a folder's name, enough to keep two generations of one name apart.
const HASH: usize = 16;
/// Name of the file that holds the reason.
const REASON: &str = "reason.json";

/// A refused spoke.
#[derive(Debug)]
pub struct Refused<'a> {
    /// Name of the spoke.
    pub name: &'a str,
    /// Entry of the folder that it came from.
    pub entry: Option<&'a str>,
    /// Its content, once it is known.
    pub generation: Option<Generation>,
    /// The pinned copy, if there is one.
    pub pinned: Option<&'a Path>,
    /// Why it is refused.
    pub why: &'a Reason,
}

/// Location of a refused spoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The folder of the content.
    pub path: PathBuf,
    /// Whether the content is there, and not only its reason.
    pub whole: bool,
}

/// The folder of refused spokes.
#[derive(Debug)]
pub struct Quarantine {
    folder: PathBuf,
    limit: u64,
    /// Lower bound of the bytes and folders in it; `None` until something is added. Counting each
    /// time would take longer and longer.
    there: Option<(u64, usize)>,
}

impl Quarantine {
    /// A quarantine whose spokes may take `limit` bytes together.
    pub fn new(folder: PathBuf, limit: u64) -> Self {
        Self { folder, limit, there: None }
    }

    /// Keeps a refused spoke and its reason. Of a spoke larger than the whole limit only the
    /// reason is kept.
    ///
    /// # Errors
    /// An I/O error.
    pub fn keep(&mut self, refused: &Refused<'_>) -> io::Result<Kept> {
        let Refused { name, entry, generation, pinned, why } = refused;
        let name = if check_name(name).is_ok() { name } else { "unnamed" };
        let hash = match generation {
            Some(generation) => generation.to_string(),
            None => Generation::of_reader(entry.unwrap_or(name).as_bytes())?.to_string(),
        };
        let path = self.folder.join(format!("{name}-{}", &hash[..HASH]));
        atomic_file::make_folder(&self.folder)?;
        let temporary =
            tempfile::Builder::new().prefix(".staged-").suffix(".tmp").tempdir_in(&self.folder)?;
        let mut whole = false;
        if let Some(pinned) = pinned {
            whole = size(pinned)? <= self.limit;
            if whole {
                link(pinned, &temporary.path().join("spoke"))?;
            }
        }
        let reason = json!({
            "name": name, "entry": entry, "generation": generation, "reason": why,
            "at": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        });
        atomic_file::write(&temporary.path().join(REASON), format!("{reason:#}\n").as_bytes())?;
        atomic_file::rename_folder(&temporary.keep(), &path)?;
        let more = size(&path)?;
        self.there = match self.there.take().map(|(bytes, folders)| (bytes + more, folders + 1)) {
            Some((bytes, folders)) if bytes <= self.limit && folders <= MOST => Some((bytes, folders)),
            _ => Some(self.make_room(&path)?),
        };
        Ok(Kept { path, whole })
    }

    /// Removes unfinished folders that a crash left among refused spokes.
    ///
    /// # Errors
    /// An I/O error.
    pub fn sweep_half_made(&self) -> io::Result<()> {
        let entries = match fs_err::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                fs_err::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes the oldest folders until the rest fits, but never the newest one. Returns bytes and
    /// folders of the rest.
    fn make_room(&self, newest: &Path) -> io::Result<(u64, usize)> {
        let mut all = Vec::new();
        for entry in fs_err::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.is_dir() {
                let kept = fs_err::metadata(path.join(REASON)).and_then(|metadata| metadata.modified());
                all.push((kept.unwrap_or(SystemTime::UNIX_EPOCH), size(&path)?, path));
            }
        }
        all.sort();
        let (mut total, mut folders) = (all.iter().map(|(_, bytes, _)| bytes).sum::<u64>(), all.len());
        // Removes some more than necessary, because counting that many folders for each addition
        // would take long.
        let most = if folders > MOST { MOST / 10 * 9 } else { MOST };
        for (_, bytes, path) in all {
            if total <= self.limit && folders <= most {
                break;
            }
            if path != newest {
                fs_err::remove_dir_all(&path)?;
                (total, folders) = (total - bytes, folders - 1);
            }
        }
        Ok((total, folders))
    }
}

/// Removes copies that are not in `needed`, and unfinished ones that a crash left.
///
/// # Errors
/// An I/O error; everything that can be removed is removed nevertheless.
pub fn sweep(staged: &Path, needed: &BTreeSet<PathBuf>) -> io::Result<()> {
    let entries = match fs_err::read_dir(staged) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut outcome = Ok(());
    for entry in entries {
        let path = entry?.path();
        if !needed.contains(&path) {
            let removed =
                if path.is_dir() { fs_err::remove_dir_all(&path) } else { fs_err::remove_file(&path) };
            outcome = outcome.and(removed);
        }
    }
    outcome
}

/// Bytes of a file, or of the files of a folder.
fn size(path: &Path) -> io::Result<u64> {
    let metadata = fs_err::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    fs_err::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

/// Links the same content under another name, because the copy may be needed where it is.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs_err::hard_link(from, to);
    }
    fs_err::create_dir(to)?;
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        fs_err::hard_link(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(root: &Path, name: &str, content: &[u8], limit: u64) -> PathBuf {
        refuse_into(&mut Quarantine::new(root.join("quarantine"), limit), root, name, content)
    }

    fn refuse_into(quarantine: &mut Quarantine, root: &Path, name: &str, content: &[u8]) -> PathBuf {
        let generation = Generation::of_reader(content).unwrap();
        let pinned = root.join("staged").join(generation.to_string());
        atomic_file::write(&pinned, content).unwrap();
        let why = Reason::new("pickle", "is a pickle").hint("convert it");
        let (generation, pinned) = (Some(generation), Some(&*pinned));
        let refused = Refused { name, entry: Some("a.pt"), generation, pinned, why: &why };
        let kept = quarantine.keep(&refused).unwrap();
        assert_eq!(kept.whole, kept.path.join("spoke").exists());
        kept.path
    }

    fn there(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs_err::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_refused_content_stands_beside_its_reason() {
        let root = tempfile::tempdir().unwrap();
        let path = refuse(root.path(), "a", b"content", 1 << 20);
        assert_eq!(path.file_name().unwrap(), "a-ed7002b439e9ac84");
        assert_eq!(there(&path), ["reason.json", "spoke"]);
        let reason: serde_json::Value =
            serde_json::from_slice(&fs_err::read(path.join("reason.json")).unwrap()).unwrap();
        assert_eq!(
            reason["reason"],
            json!({"code": "pickle", "message": "is a pickle", "hint": "convert it"})
        );
        assert_eq!((&reason["name"], &reason["entry"]), (&json!("a"), &json!("a.pt")));
        // The same again, and a name that contains a path.
        assert_eq!(refuse(root.path(), "a", b"content", 1 << 20), path);
        assert!(
            refuse(root.path(), "../b", b"content", 1 << 20).ends_with("quarantine/unnamed-ed7002b439e9ac84")
        );
    }

    #[test]
    fn what_was_never_copied_leaves_its_reason() {
        let root = tempfile::tempdir().unwrap();
        let why = Reason::new("link", "is a symbolic link");
        let mut quarantine = Quarantine::new(root.path().to_owned(), 1 << 20);
        let mut keep = |entry| {
            let refused =
                Refused { name: "a", entry: Some(entry), generation: None, pinned: None, why: &why };
            quarantine.keep(&refused).unwrap()
        };
        let [one, two, again] = [keep("a.gguf"), keep("a.zip"), keep("a.gguf")];
        assert!(one.path != two.path && one == again && !one.whole);
        assert_eq!(there(&one.path), ["reason.json"]);
        let reason = fs_err::read_to_string(two.path.join(REASON)).unwrap();
        assert!(reason.contains("\"a.zip\"") && reason.contains("\"generation\": null"), "{reason}");
    }

    #[test]
    fn the_oldest_go_when_there_is_no_room() {
        let root = tempfile::tempdir().unwrap();
        let quarantine = root.path().join("quarantine");
        for (n, name) in ["one", "two", "three"].into_iter().enumerate() {
            refuse(root.path(), name, &[n as u8; 1_000], 2_900);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let left: Vec<String> = there(&quarantine);
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(!left.iter().any(|name| name.starts_with("one-")), "{left:?}");
        let alone = refuse(root.path(), "large", &[9; 5_000], 2_900);
        assert_eq!(there(&alone), ["reason.json"]);
        // A quarantine that keeps count gets the same result.
        let mut counting = Quarantine::new(quarantine.clone(), 2_900);
        for (n, name) in ["four", "five", "six", "seven"].into_iter().enumerate() {
            let newest = refuse_into(&mut counting, root.path(), name, &[100 + n as u8; 1_000]);
            assert!(newest.exists() && size(&quarantine).unwrap() <= 2_900);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(there(&quarantine).iter().any(|name| name.starts_with("six-")));
    }

    #[test]
    fn copies_that_nobody_needs_are_swept_away() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["kept", "not", ".staged-x.tmp", "folder/part", "kept-folder/part"] {
            atomic_file::write(&path(name), b"x").unwrap();
        }
        sweep(root.path(), &[path("kept"), path("kept-folder"), path("gone already")].into()).unwrap();
        assert_eq!(there(root.path()), ["kept", "kept-folder"]);
        sweep(&path("nowhere"), &BTreeSet::new()).unwrap();
        fs_err::create_dir(path(".staged-half.tmp")).unwrap();
        Quarantine::new(root.path().to_owned(), 0).sweep_half_made().unwrap();
        assert_eq!(there(root.path()), ["kept", "kept-folder"]);
        Quarantine::new(path("nowhere"), 0).sweep_half_made().unwrap();
    }
}
