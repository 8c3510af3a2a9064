//! Opens what was dropped into the folder: each part once (no links, regular files only,
//! size-limited), its format detected from the first bytes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Map, Value};

use super::{Defect, Format, Limits, Refusal, archive};
use crate::gguf::Gguf;
use crate::model::safetensors_file::SafetensorsFile;

/// Parts of a PEFT folder.
pub(super) const PEFT_CONFIG: &str = "adapter_config.json";
pub(super) const PEFT_WEIGHTS: &str = "adapter_model.safetensors";
/// PEFT's name for the same weights as a pickle.
const PEFT_PICKLE: &str = "adapter_model.bin";
/// Parts of a Felix spoke folder, whose configuration is a separate file.
pub(super) const FELIX_WEIGHTS: &str = "spoke.safetensors";
pub(super) const FELIX_CONFIG: &str = "spoke.json";

/// Longest JSON part that is read.
pub(super) const MAX_JSON_BYTES: u64 = 1 << 20;
const REGULAR: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);

/// An open part. If the file is replaced by a rename, this stays the one that was opened.
#[derive(Debug)]
pub(super) struct Part {
    pub path: PathBuf,
    pub file: File,
}

impl Part {
    fn refuse(&self, reason: impl Into<Defect>) -> Refusal {
        Refusal::new(&self.path, reason)
    }

    pub fn bytes(&self) -> Result<u64, Refusal> {
        Ok(self.file.metadata().map_err(|error| self.refuse(error))?.len())
    }

    fn gguf(self, limits: &Limits) -> Result<Gguf, Refusal> {
        Ok(Gguf::from_file(&self.path, self.file, limits.max_header_bytes)?)
    }

    fn safetensors(self, limits: &Limits) -> Result<SafetensorsFile, Refusal> {
        let opened = SafetensorsFile::from_file(&self.path, self.file, limits.max_header_bytes);
        opened.map_err(|error| Refusal::new(&self.path, error))
    }

    fn json(mut self) -> Result<Json, Refusal> {
        let found = self.bytes()?;
        if found > MAX_JSON_BYTES {
            return Err(self.refuse(Defect::TooLarge { found, limit: MAX_JSON_BYTES }));
        }
        let mut text = Vec::new();
        let read = (&mut self.file).take(MAX_JSON_BYTES).read_to_end(&mut text);
        read.map_err(|error| self.refuse(error))?;
        let object = serde_json::from_slice(&text).map_err(|error| self.refuse(error))?;
        Ok(Json { path: self.path, object })
    }
}

/// A part that is a JSON object.
#[derive(Debug)]
pub(super) struct Json {
    pub path: PathBuf,
    pub object: Map<String, Value>,
}

/// A spoke's parts, by format.
#[derive(Debug)]
pub(super) enum Dropped {
    /// A GGUF file of any kind.
    Gguf(Gguf),
    /// A safetensors file, with the JSON file next to it if there is one.
    Safetensors { weights: SafetensorsFile, config: Option<Json> },
    /// PEFT's two files, from a folder or an archive.
    Peft { format: Format, config: Json, weights: SafetensorsFile },
}

impl Dropped {
    /// Detects the format of the parts.
    ///
    /// # Errors
    /// What the parts are instead of a spoke, or a rule of the container format that a part breaks.
    pub fn of(parts: Parts, limits: &Limits) -> Result<Self, Refusal> {
        match parts.folder {
            None => Self::of_file(parts, limits),
            Some(_) => Self::of_folder(parts, limits),
        }
    }

    fn of_file(parts: Parts, limits: &Limits) -> Result<Self, Refusal> {
        let mut parts = parts.files.into_iter();
        let (_, main) = parts.next().expect("a file is a part");
        match sniff(&main.file).map_err(|reason| main.refuse(reason))? {
            Content::Gguf => Ok(Self::Gguf(main.gguf(limits)?)),
            Content::Safetensors => {
                let config = parts.next().map(|(_, part)| part.json()).transpose()?;
                Ok(Self::Safetensors { weights: main.safetensors(limits)?, config })
            }
            Content::Zip => {
                let (config, weights) = archive::open(main, limits)?;
                let format = Format::PeftZip;
                Ok(Self::Peft { format, config: config.json()?, weights: weights.safetensors(limits)? })
            }
        }
    }

    fn of_folder(parts: Parts, limits: &Limits) -> Result<Self, Refusal> {
        let mut parts = parts.files.into_iter();
        let mut next = || parts.next().map(|(_, part)| part);
        let (weights, config) = (next().expect("a folder has parts"), next());
        if weights.path.file_name() == Some(OsStr::new(FELIX_WEIGHTS)) {
            let config = config.map(Part::json).transpose()?;
            return Ok(Self::Safetensors { weights: weights.safetensors(limits)?, config });
        }
        let config = config.expect("a PEFT folder has two parts").json()?;
        Ok(Self::Peft { format: Format::PeftFolder, config, weights: weights.safetensors(limits)? })
    }
}

/// The open files of a spoke, the weights first. Each has the name that a copy of it gets.
#[derive(Debug)]
pub(super) struct Parts {
    /// The folder, if the spoke is one.
    pub folder: Option<PathBuf>,
    pub files: Vec<(&'static str, Part)>,
}

impl Parts {
    /// Opens a file (with the JSON file next to it if a safetensors file needs one) or the known
    /// files of a folder.
    ///
    /// # Errors
    /// What the path is instead; a folder of another kind; more bytes than the limit.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, Refusal> {
        let refuse = |reason: Defect| Refusal::new(path, reason);
        let kind = std::fs::symlink_metadata(path).map_err(|error| refuse(error.into()))?.file_type();
        if kind.is_dir() {
            return Self::of_folder(path, limits);
        }
        let main =
            Part { path: path.to_owned(), file: open_at(CWD, path, limits.max_bytes).map_err(refuse)? };
        let mut files = vec![(FELIX_WEIGHTS, main)];
        let side = path.with_extension("json");
        if side != path && matches!(sniff(&files[0].1.file), Ok(Content::Safetensors)) {
            match open_at(CWD, &side, MAX_JSON_BYTES) {
                Ok(file) => files.push((FELIX_CONFIG, Part { path: side, file })),
                Err(Defect::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(reason) => return Err(Refusal::new(&side, reason)),
            }
        }
        Ok(Self { folder: None, files })
    }

    fn of_folder(path: &Path, limits: &Limits) -> Result<Self, Refusal> {
        let refuse = |reason: Defect| Refusal::new(path, reason);
        // Parts are opened relative to the folder's handle, because the path may be replaced by a
        // link meanwhile.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR => refuse(Defect::Link),
            error => refuse(Defect::Io(error.into())),
        })?;
        let part = |name: &'static str, limit| match open_at(&folder, Path::new(name), limit) {
            Ok(file) => Ok(Some((name, Part { path: path.join(name), file }))),
            Err(Defect::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(reason) => Err(Refusal::new(&path.join(name), reason)),
        };
        let mut files = Vec::new();
        let other = part(FELIX_WEIGHTS, limits.max_bytes)?;
        if let Some(config) = part(PEFT_CONFIG, MAX_JSON_BYTES)? {
            if other.is_some() {
                return Err(refuse(Defect::Unsupported {
                    code: "two_spokes",
                    what: format!("there are {PEFT_CONFIG:?} and {FELIX_WEIGHTS:?}"),
                    why: "are two spokes, one of which would be ignored",
                    hint: "give each a folder of its own",
                }));
            }
            let Some(weights) = part(PEFT_WEIGHTS, limits.max_bytes)? else {
                return Err(match part(PEFT_PICKLE, limits.max_bytes)? {
                    Some((_, pickle)) => pickle.refuse(Defect::Pickle { found: "PyTorch's" }),
                    None => refuse(Defect::MissingPart { part: PEFT_WEIGHTS }),
                });
            };
            files.extend([weights, config]);
        } else if let Some(weights) = other {
            files.push(weights);
            files.extend(part(FELIX_CONFIG, MAX_JSON_BYTES)?);
        } else {
            return Err(refuse(Defect::NotAFile { found: "directory" }));
        }
        Ok(Self { folder: Some(path.to_owned()), files })
    }

    /// Whether the spoke is a single file, whose content is its identity.
    pub fn is_single(&self) -> bool {
        self.folder.is_none() && self.files.len() == 1
    }

    /// Bytes of all parts.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn bytes(&self) -> Result<u64, Refusal> {
        self.files.iter().map(|(_, part)| part.bytes()).sum()
    }
}

/// Opens a regular file without following a link in its last path component, and without blocking.
fn open_at(folder: impl rustix::fd::AsFd, path: &Path, limit: u64) -> Result<File, Defect> {
    crate::failpoints::trouble("spoke.open")?;
    // The type is checked before opening, because opening a device can have side effects.
    let looked = rustix::fs::statat(&folder, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    let mode = looked.map_err(|error| Defect::Io(error.into()))?.st_mode;
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::RegularFile => {}
        rustix::fs::FileType::Symlink => return Err(Defect::Link),
        rustix::fs::FileType::Directory => return Err(Defect::NotAFile { found: "directory" }),
        rustix::fs::FileType::Fifo => return Err(Defect::NotAFile { found: "FIFO" }),
        rustix::fs::FileType::Socket => return Err(Defect::NotAFile { found: "socket" }),
        _ => return Err(Defect::NotAFile { found: "device" }),
    }
    let handle: OwnedFd =
        rustix::fs::openat(folder, path, REGULAR, Mode::empty()).map_err(|error| match error {
            Errno::LOOP => Defect::Link,
            error => Defect::Io(error.into()),
        })?;
    let file = File::from(handle);
    // The type is checked again on the handle, because the file may have been replaced after the
    // first check.
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        return Err(Defect::NotAFile { found: if kind.is_fifo() { "FIFO" } else { "device" } });
    }
    match metadata.len() {
        0 => Err(Defect::Empty),
        found if found > limit => Err(Defect::TooLarge { found, limit }),
        _ => Ok(file),
    }
}

/// Content of a file, by its first bytes.
enum Content {
    Gguf,
    Safetensors,
    Zip,
}

fn sniff(file: &File) -> Result<Content, Defect> {
    let mut head = [0; 9];
    let mut count = 0;
    while count < head.len() {
        match file.read_at(&mut head[count..], count as u64)? {
            0 => break,
            more => count += more,
        }
    }
    match &head[..count] {
        [b'G', b'G', b'U', b'F', ..] => Ok(Content::Gguf),
        [b'P', b'K', 3, 4, ..] => Ok(Content::Zip),
        // A safetensors file starts with the header's length and an opening brace.
        [.., 0, 0, 0, b'{'] if count == 9 => Ok(Content::Safetensors),
        // Pickle protocols 2 to 5. PyTorch's old files begin with such a number too.
        [0x80, 2..=5, ..] => Err(Defect::Pickle { found: "Python's" }),
        // Don't quote the bytes: the file may hold secrets of someone other than the reader of the
        // error.
        head => {
            let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
            let found = if head.iter().all(printable) { "text" } else { "unknown bytes" };
            Err(Defect::UnknownFormat { found })
        }
    }
}
