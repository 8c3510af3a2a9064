//! Pinning: a dropped file is copied to a place that only we write to, under the hash of what was copied. From here on
//! nobody outside can change what was inspected.

use std::fs::Metadata;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::dropped::{Part, Parts};
use super::life::Why;
use super::{Digest, Generation, Limits, Refusal};
use crate::durable::{self, Staged};

/// Bytes that are copied at a time.
const BLOCK: usize = 1 << 20;

/// A copy that nobody changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Hash of its content.
    pub generation: Generation,
    /// Where it is: a file, or a folder of files under known names.
    pub path: PathBuf,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It was written to while it was copied.
    #[error("it was changed while it was copied")]
    Changed,
    /// It isn't what can be copied.
    #[error(transparent)]
    Refused(Refusal),
    /// The copy can't be written.
    #[error("{path}: {source}", path = path.display())]
    Copy {
        /// The folder of copies.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl From<PinError> for Why {
    fn from(error: PinError) -> Self {
        match error {
            PinError::Changed => Self::new("changed", error.to_string()),
            PinError::Refused(refusal) => refusal.into(),
            PinError::Copy { .. } => Self::new("not_copied", error.to_string())
                .hint("it is tried again; is there room in the state directory?"),
        }
    }
}

impl From<Refusal> for Why {
    fn from(refusal: Refusal) -> Self {
        // The path is ours or in the folder; whoever asks over the network learns neither.
        Self { code: refusal.code().into(), message: refusal.reason.to_string(), hint: refusal.hint() }
    }
}

/// Copies what is at `source` into `folder`, and gives it the name of its hash.
///
/// # Errors
/// [`PinError`].
pub fn pin(source: &Path, folder: &Path, limits: &Limits) -> Result<Pinned, PinError> {
    let parts = Parts::open(source, limits).map_err(PinError::Refused)?;
    let copy = |source| PinError::Copy { path: folder.to_owned(), source };
    let mut parts = parts.files;
    if let [(_, part)] = parts.as_mut_slice() {
        let mut staged = Staged::new(&folder.join("file")).map_err(copy)?;
        let digest = copy_part(part, &mut staged, limits).map_err(|error| error.at(folder))?;
        let path = folder.join(digest.to_string());
        if !path.is_file() {
            staged.commit_as(&path).map_err(copy)?;
        }
        return Ok(Pinned { generation: Generation(digest), path });
    }
    let temporary = tempfile::Builder::new()
        .prefix(".staged-")
        .suffix(".tmp")
        .tempdir_in(fs_err::create_dir_all(folder).map(|()| folder).map_err(copy)?)
        .map_err(copy)?;
    let mut whole = Sha256::new();
    for (name, part) in &mut parts {
        let mut staged = Staged::new(&temporary.path().join(*name)).map_err(copy)?;
        let digest = copy_part(part, &mut staged, limits).map_err(|error| error.at(folder))?;
        staged.commit().map_err(copy)?;
        // Names in front of contents, each of a length that is known: no two folders have the same.
        whole.update((name.len() as u64).to_le_bytes());
        whole.update(name.as_bytes());
        whole.update(digest.0);
    }
    let digest = Digest(whole.finalize().into());
    let path = folder.join(digest.to_string());
    if !path.is_dir() {
        durable::rename_folder(&temporary.keep(), &path).map_err(copy)?;
    }
    Ok(Pinned { generation: Generation(digest), path })
}

/// What went wrong with one part.
enum Trouble {
    Changed,
    Read(PathBuf, io::Error),
    Write(io::Error),
}

impl Trouble {
    fn at(self, folder: &Path) -> PinError {
        match self {
            Self::Changed => PinError::Changed,
            Self::Read(path, error) => PinError::Refused(Refusal::new(&path, error)),
            Self::Write(source) => PinError::Copy { path: folder.to_owned(), source },
        }
    }
}

/// Copies and hashes in one go, and makes sure that the file stayed what it was.
fn copy_part(part: &mut Part, to: &mut impl Write, limits: &Limits) -> Result<Digest, Trouble> {
    let read = |error| Trouble::Read(part.path.clone(), error);
    let before = look(&part.file.metadata().map_err(read)?);
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut copied = 0_u64;
    loop {
        let count = match part.file.read(&mut block) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Trouble::Read(part.path.clone(), error)),
        };
        copied += count as u64;
        // Whoever makes it grow under our hands must not fill the disk.
        if copied > before.0.min(limits.max_bytes) {
            return Err(Trouble::Changed);
        }
        hasher.update(&block[..count]);
        to.write_all(&block[..count]).map_err(Trouble::Write)?;
    }
    let after = part.file.metadata().map_err(|error| Trouble::Read(part.path.clone(), error))?;
    if copied != before.0 || look(&after) != before {
        return Err(Trouble::Changed);
    }
    Ok(Digest(hasher.finalize().into()))
}

/// What changes when a file is written to.
fn look(metadata: &Metadata) -> (u64, [i64; 4]) {
    let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
    (metadata.len(), times)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough to look like a file of this kind from outside.
    const GGUF: &[u8] = b"GGUF and no more";

    fn code(error: PinError) -> String {
        Why::from(error).code.into_owned()
    }

    fn left(folder: &Path) -> usize {
        fs_err::read_dir(folder).map_or(0, Iterator::count)
    }

    #[test]
    fn a_copy_has_the_name_of_its_content_and_the_original_may_go() {
        let root = tempfile::tempdir().unwrap();
        let (source, staged) = (root.path().join("a.gguf"), root.path().join("staged"));
        durable::write(&source, GGUF).unwrap();
        let pinned = pin(&source, &staged, &Limits::default()).unwrap();
        assert_eq!(pinned.generation, Generation::of_reader(GGUF).unwrap());
        assert_eq!(pinned.path, staged.join(pinned.generation.to_string()));
        assert_eq!(pin(&source, &staged, &Limits::default()).unwrap(), pinned);
        fs_err::remove_file(&source).unwrap();
        assert_eq!(fs_err::read(&pinned.path).unwrap(), GGUF);
        assert_eq!(left(&staged), 1);
    }

    #[test]
    fn a_folder_is_copied_with_its_known_files_only() {
        let root = tempfile::tempdir().unwrap();
        let (source, staged) = (root.path().join("peft"), root.path().join("staged"));
        durable::write(&source.join("adapter_config.json"), b"{}").unwrap();
        durable::write(&source.join("adapter_model.safetensors"), b"weights").unwrap();
        durable::write(&source.join("README.md"), b"hello").unwrap();
        let pinned = pin(&source, &staged, &Limits::default()).unwrap();
        assert_eq!((left(&staged), left(&pinned.path)), (1, 2));
        assert_eq!(pin(&source, &staged, &Limits::default()).unwrap(), pinned);
        durable::write(&source.join("adapter_config.json"), b"{ }").unwrap();
        assert_ne!(pin(&source, &staged, &Limits::default()).unwrap().generation, pinned.generation);
    }

    #[test]
    fn links_other_things_than_files_and_large_ones_leave_no_copy() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let staged = path("staged");
        durable::write(&path("file.gguf"), GGUF).unwrap();
        std::os::unix::fs::symlink(path("file.gguf"), path("link.gguf")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("fifo.gguf"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        fs_err::create_dir(path("empty")).unwrap();
        let small = Limits { max_bytes: GGUF.len() as u64 - 1, ..Limits::default() };
        for (name, limits, expected) in [
            ("link.gguf", &Limits::default(), "symlink"),
            ("fifo.gguf", &Limits::default(), "fifo"),
            ("empty", &Limits::default(), "directory"),
            ("nothing", &Limits::default(), "not_found"),
            ("file.gguf", &small, "too_large"),
        ] {
            assert_eq!(code(pin(&path(name), &staged, limits).unwrap_err()), expected, "{name}");
        }
        assert_eq!(left(&staged), 0);
    }

    /// Writes to the file that it gets a copy of.
    struct Meddler(std::fs::File);

    impl Write for Meddler {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write_all(b"y")?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_that_changes_while_it_is_copied_is_told_apart() {
        use std::io::{Seek, SeekFrom};
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("a.gguf");
        for (grows, in_place) in [(false, false), (true, false), (false, true)] {
            durable::write(&source, &vec![b'x'; 2 * BLOCK]).unwrap();
            let mut parts = Parts::open(&source, &Limits::default()).unwrap().files;
            // The clock of the file system ticks every few milliseconds only.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let copied = if grows || in_place {
                let mut file = std::fs::OpenOptions::new().write(true).open(&source).unwrap();
                file.seek(if grows { SeekFrom::End(0) } else { SeekFrom::Start(0) }).unwrap();
                copy_part(&mut parts[0].1, &mut Meddler(file), &Limits::default())
            } else {
                copy_part(&mut parts[0].1, &mut io::sink(), &Limits::default())
            };
            assert_eq!(matches!(copied, Err(Trouble::Changed)), grows || in_place);
        }
    }
}
