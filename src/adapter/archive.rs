//! Reads a zip archive of a PEFT folder: unpacks its configuration and weights within size limits,
//! and ignores everything else.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zip::ZipArchive;
use zip::result::ZipError;

use super::dropped::{MAX_JSON_BYTES, PEFT_CONFIG, PEFT_WEIGHTS, Part};
use super::refusal::is_trouble;
use super::{Defect, Limits, Refusal};

/// Bytes that may be read to list the archive. A PEFT folder needs a few hundred.
const MAX_DIRECTORY_BYTES: u64 = 1 << 20;

/// Unpacks the configuration and the weights of a PEFT folder into unnamed files. They are created
/// on the archive's own disk if it is writable, because the system's temporary folder is often in
/// memory.
///
/// # Errors
/// The file is no such archive; a part is missing, duplicated, or larger than the limit; the
/// archive is a PyTorch checkpoint.
pub(super) fn open(archive: Part, limits: &Limits) -> Result<(Part, Part), Refusal> {
    let Part { path, file } = archive;
    let refuse = |reason: Defect| Refusal::new(&path, reason);
    let budget = Arc::new(AtomicU64::new(MAX_DIRECTORY_BYTES));
    let reader = Budget { file, left: budget.clone() };
    let mut archive = ZipArchive::new(reader).map_err(|error| refuse(wrong(error)))?;
    // From here on every read is bounded by the unpacked size. Packed bytes hardly exceed unpacked
    // ones.
    budget.store(limits.max_bytes.saturating_mul(2).saturating_add(MAX_DIRECTORY_BYTES), Ordering::Relaxed);
    let names: Vec<String> =
        archive.file_names_raw().map(|name| String::from_utf8_lossy(name).into()).collect();
    if names.iter().any(|name| name == "data.pkl" || name.ends_with("/data.pkl")) {
        return Err(refuse(Defect::Pickle { found: "PyTorch's" }));
    }
    if archive.has_duplicate_names() {
        return Err(refuse(Defect::Zip { message: "a name is there twice".into() }));
    }
    let config = find(&names, PEFT_CONFIG).map_err(refuse)?;
    let folder = &names[config][..names[config].len() - PEFT_CONFIG.len()];
    let weights = find(&names, PEFT_WEIGHTS).map_err(refuse)?;
    if names[weights] != format!("{folder}{PEFT_WEIGHTS}") {
        let message = format!("{:?} and {:?} are in different folders", names[config], names[weights]);
        return Err(refuse(Defect::Zip { message }));
    }
    let mut unpack = |index: usize, limit: u64| {
        let part = path.join(&names[index]);
        match unpack(&mut archive, index, limit, &path) {
            Ok(file) => Ok(Part { path: part, file }),
            Err(reason) => Err(Refusal::new(&part, reason)),
        }
    };
    Ok((unpack(config, MAX_JSON_BYTES)?, unpack(weights, limits.max_bytes)?))
}

/// Index of the file with this name, in any folder of the archive.
fn find(names: &[String], part: &'static str) -> Result<usize, Defect> {
    let mut found = names.iter().enumerate().filter(|(_, name)| name.rsplit('/').next() == Some(part));
    match (found.next(), found.next()) {
        (None, _) => Err(Defect::MissingPart { part }),
        (Some((index, _)), None) => Ok(index),
        (Some((_, a)), Some((_, b))) => {
            Err(Defect::Zip { message: format!("{a:?} and {b:?} are both there") })
        }
    }
}

fn unpack(archive: &mut ZipArchive<Budget>, index: usize, limit: u64, beside: &Path) -> Result<File, Defect> {
    let entry = archive.by_index(index).map_err(wrong)?;
    if entry.is_symlink() {
        return Err(Defect::Link);
    }
    if entry.size() > limit {
        return Err(Defect::TooLarge { found: entry.size(), limit });
    }
    let folder = beside.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file =
        tempfile::tempfile_in(folder.unwrap_or(Path::new("."))).or_else(|_| tempfile::tempfile())?;
    // The size that the archive claims is not trusted, so the copy itself is limited.
    let unpacked = io::copy(&mut entry.take(limit.saturating_add(1)), &mut file);
    let broken = |error: io::Error| {
        if is_trouble(&error) { Defect::Io(error) } else { Defect::Zip { message: error.to_string() } }
    };
    match unpacked.map_err(broken)? {
        0 => return Err(Defect::Empty),
        found if found > limit => return Err(Defect::TooLarge { found, limit }),
        _ => {}
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn wrong(error: ZipError) -> Defect {
    match error {
        ZipError::Io(error) if is_trouble(&error) => Defect::Io(error),
        error => Defect::Zip { message: error.to_string() },
    }
}

/// A file from which only a limited number of bytes can be read, so that the lengths in it need not
/// be trusted.
struct Budget {
    file: File,
    left: Arc<AtomicU64>,
}

impl Read for Budget {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        let left = self.left.load(Ordering::Relaxed);
        let Some(left) = left.checked_sub(count as u64) else {
            return Err(io::Error::other("its directory is larger than that of any spoke"));
        };
        self.left.store(left, Ordering::Relaxed);
        Ok(count)
    }
}

impl Seek for Budget {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
