//! Atomic and durable file writes: a temporary file next to the target, fsync, rename, fsync of the
//! folder. Every file that must survive a crash is written here.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::failpoints;

/// A file under construction, invisible under its final name until [`Staged::commit`].
///
/// Dropping it without committing removes the temporary file, so a failure leaves nothing
/// half-written.
#[derive(Debug)]
pub struct Staged {
    temporary: NamedTempFile,
    target: PathBuf,
}

impl Staged {
    /// Starts a file that will replace `target`. Creates missing parent folders.
    pub fn new(target: &Path) -> io::Result<Self> {
        let folder = parent(target);
        make_folder(folder)?;
        failpoints::trouble("durable.open")?;
        let temporary = tempfile::Builder::new().prefix(".staged-").suffix(".tmp").tempfile_in(folder)?;
        Ok(Self { temporary, target: target.to_owned() })
    }

    /// The temporary file's path, for writers (C libraries) that insist on opening it themselves.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// The open temporary file.
    pub fn file(&mut self) -> &mut std::fs::File {
        self.temporary.as_file_mut()
    }

    /// Syncs the content, renames the file to its target and syncs the folder, in this order.
    pub fn commit(self) -> io::Result<()> {
        // Reopen by path: a C library may have replaced the file under this name.
        fs_err::File::open(self.temporary.path())?.sync_all()?;
        set_default_mode(self.temporary.path())?;
        self.temporary.persist(&self.target).map_err(|e| e.error)?;
        sync_folder(parent(&self.target))
    }
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        failpoints::trouble("durable.write")?;
        self.temporary.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

/// Replaces `target` by `bytes` atomically and durably.
pub fn write(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut staged = Staged::new(target)?;
    staged.write_all(bytes)?;
    staged.commit()
}

/// Opens a log for appending and creates it if missing. Lines are not synced one by one: after a
/// power cut a log may lack its last lines, never its first.
pub fn append(target: &Path) -> io::Result<std::fs::File> {
    fs_err::create_dir_all(parent(target))?;
    std::fs::OpenOptions::new().create(true).append(true).open(target)
}

/// Opens a file for appending and concurrent reading, and creates it if missing. Like a log, it may
/// lose its last bytes in a power cut.
pub fn grow(target: &Path) -> io::Result<std::fs::File> {
    fs_err::create_dir_all(parent(target))?;
    std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(target)
}

/// Locks a file, which is created if missing. Returns `None` if another process holds the lock. The
/// lock ends when the returned file is dropped or the process exits.
pub fn lock(path: &Path) -> io::Result<Option<std::fs::File>> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Replaces `target` with the content of another file, atomically and durably.
pub fn copy(from: &Path, target: &Path) -> io::Result<()> {
    let mut staged = Staged::new(target)?;
    io::copy(&mut fs_err::File::open(from)?, &mut staged)?;
    staged.commit()
}

/// Creates a folder and its missing parents, and syncs them, so that files written into it later
/// survive a power cut.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    fs_err::create_dir_all(folder)?;
    missing.into_iter().try_for_each(|made| sync_folder(parent(made)))
}

/// Renames a finished, synced file to its final name, replacing an older one, and syncs the folder.
pub fn rename_file(from: &Path, to: &Path) -> io::Result<()> {
    fs_err::rename(from, to)?;
    sync_folder(parent(to))
}

/// Renames a finished temporary folder to its final name, replacing an older one, and syncs the
/// parent.
pub fn rename_folder(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs_err::read_dir(from)? {
        let path = entry?.path();
        if path.is_file() {
            fs_err::File::open(&path)?.sync_all()?;
        }
    }
    sync_folder(from)?;
    if to.exists() {
        fs_err::remove_dir_all(to)?;
    }
    fs_err::rename(from, to)?;
    sync_folder(parent(to))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs_err::File::open(folder)?.sync_all()
}

/// Temporary files are created with mode 0600. A published file gets the usual 0644.
fn set_default_mode(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_leaves_the_old_content_and_no_rest() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("deep/state.json");
        write(&target, b"old").unwrap();
        let mut staged = Staged::new(&target).unwrap();
        staged.write_all(b"half of the new").unwrap();
        drop(staged);
        assert_eq!(fs_err::read(&target).unwrap(), b"old");
        assert_eq!(fs_err::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_replaces_an_older_one() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("new.tmp"), root.path().join("step-10"));
        write(&to.join("stale"), b"x").unwrap();
        write(&from.join("fresh"), b"y").unwrap();
        rename_folder(&from, &to).unwrap();
        assert!(to.join("fresh").exists() && !to.join("stale").exists() && !from.exists());
    }
}
