//! Copies of dropped files, named by their content. Inspection and serving both use the copy, so a
//! file can't change in between.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::dropped::{Part, Parts};
use super::{Defect, Digest, Generation, Limits, Refusal};
use crate::atomic_file::{self, Staged};

/// Bytes per read and write of a copy.
const PART: usize = 1 << 18;

/// A copy that only this process writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Hash of the content.
    pub generation: Generation,
    /// The copy: a file, or a folder where the spoke has several parts.
    pub path: PathBuf,
}

/// Copies a dropped file or folder into `folder`, under its generation. From then on only the copy
/// is used.
///
/// The generation of a single file is the SHA-256 of its content. That of several parts is the
/// SHA-256 of their names, lengths and contents.
///
/// # Errors
/// What the file is instead; more bytes than the limit, even if it grows during the copy; an I/O
/// error.
pub fn pin(path: &Path, folder: &Path, limits: &Limits) -> Result<Pinned, Refusal> {
    let parts = Parts::open(path, limits)?;
    let disk = |error: io::Error| Refusal::new(folder, error);
    atomic_file::make_folder(folder).map_err(disk)?;
    let stage = tempfile::Builder::new().prefix(".pinning-").tempdir_in(folder).map_err(disk)?;
    let single = parts.is_single();
    let mut digests = Vec::new();
    for (name, part) in parts.files {
        let (digest, bytes) = copy_part(part, &stage.path().join(name), limits)?;
        digests.push((name, digest, bytes));
    }
    let from = if single { stage.path().join(digests[0].0) } else { stage.path().to_owned() };
    let generation = combined(single, &digests);
    let target = folder.join(generation.to_string());
    let placed = if single {
        atomic_file::rename_file(&from, &target)
    } else {
        atomic_file::rename_folder(&from, &target)
    };
    placed.map_err(disk)?;
    if !single {
        // The staging folder was renamed, so there is nothing left to remove.
        let _ = stage.keep();
    }
    Ok(Pinned { generation, path: target })
}

/// The generation of a dropped file or folder, as [`pin`] computes it.
///
/// # Errors
/// What the file is instead; an I/O error.
pub fn generation(path: &Path, limits: &Limits) -> Result<Generation, Refusal> {
    let parts = Parts::open(path, limits)?;
    let single = parts.is_single();
    let mut digests = Vec::new();
    for (name, Part { path, file }) in parts.files {
        let refuse = |error: io::Error| Refusal::new(&path, error);
        let bytes = file.metadata().map_err(refuse)?.len();
        digests.push((name, Digest::of_reader(file).map_err(refuse)?, bytes));
    }
    Ok(combined(single, &digests))
}

/// Combines the names, lengths and hashes of all parts into one generation.
fn combined(single: bool, parts: &[(&str, Digest, u64)]) -> Generation {
    if let ([(_, digest, _)], true) = (parts, single) {
        return Generation(*digest);
    }
    let mut whole = Sha256::new();
    for (name, digest, bytes) in parts {
        whole.update(name);
        whole.update([0]);
        whole.update(bytes.to_le_bytes());
        whole.update(digest.0);
    }
    Generation(Digest(whole.finalize().into()))
}

/// Copies one file.
pub(super) fn copy(source: &Path, target: &Path, limits: &Limits) -> Result<Digest, Refusal> {
    let parts = Parts::open(source, limits)?;
    let (_, part) = parts.files.into_iter().next().expect("what was opened has a part");
    Ok(copy_part(part, target, limits)?.0)
}

fn copy_part(part: Part, target: &Path, limits: &Limits) -> Result<(Digest, u64), Refusal> {
    let Part { path, file } = part;
    let refuse = |reason: Defect| Refusal::new(&path, reason);
    let disk = |error: io::Error| Refusal::new(target, error);
    let mut staged = Staged::new(target).map_err(disk)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; PART];
    let mut found = 0;
    // The file may have grown since its size was checked.
    let mut reader = file.take(limits.max_bytes.saturating_add(1));
    loop {
        let part = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(refuse(error.into())),
        };
        hasher.update(part);
        // A full disk is no fault of the file that is read.
        staged.write_all(part).map_err(disk)?;
        found += part.len() as u64;
    }
    if found > limits.max_bytes {
        return Err(refuse(Defect::TooLarge { found, limit: limits.max_bytes }));
    }
    staged.flush().map_err(disk)?;
    staged.commit().map_err(disk)?;
    Ok((Digest(hasher.finalize().into()), found))
}
