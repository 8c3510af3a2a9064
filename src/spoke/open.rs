//! Opens what someone dropped: no links, regular files only, a cap on the size.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::{Limits, Reason};

/// Opens a regular file without following a link in its last part, and without waiting for anyone.
///
/// # Errors
/// What it is instead; more bytes than the limit; none.
pub fn open_file(path: &Path, limits: &Limits) -> Result<File, Reason> {
    // Looked at before opening: opening a device can have an effect.
    let kind = std::fs::symlink_metadata(path)?.file_type();
    regular(kind)?;
    // Looked at again behind the handle: it may have been replaced between the two.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(handle) => File::from(handle),
        Err(rustix::io::Errno::LOOP) => return Err(Reason::Link),
        Err(error) => return Err(Reason::Io(error.into())),
    };
    let metadata = file.metadata()?;
    regular(metadata.file_type())?;
    match metadata.len() {
        0 => Err(Reason::Empty),
        found if found > limits.max_bytes => Err(Reason::TooLarge { found, limit: limits.max_bytes }),
        _ => Ok(file),
    }
}

fn regular(kind: std::fs::FileType) -> Result<(), Reason> {
    let found = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_symlink() => return Err(Reason::Link),
        () if kind.is_dir() => "directory",
        () if kind.is_fifo() => "FIFO",
        () if kind.is_socket() => "socket",
        () => "device",
    };
    Err(Reason::NotAFile { found })
}
