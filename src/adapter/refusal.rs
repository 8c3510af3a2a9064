//! Reasons why a file is no spoke for this post: one variant per rule, each with a stable code and,
//! if possible, a hint.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Digest;
use crate::gguf::{GgufError, Rule};
use crate::model::FileError;

/// A file, and the rule that it breaks.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Refusal {
    /// The file or folder.
    pub path: PathBuf,
    /// The rule. It is no error source, because the message already includes it.
    pub reason: Defect,
}

impl Refusal {
    /// A refusal of this file for a broken rule.
    pub fn new(path: &Path, reason: impl Into<Defect>) -> Self {
        Self { path: path.to_owned(), reason: reason.into() }
    }

    /// The rule's name in the API, in snake_case; it never changes.
    pub fn code(&self) -> &'static str {
        self.reason.code()
    }

    /// What the file's owner can do about it.
    pub fn hint(&self) -> Option<String> {
        self.reason.hint()
    }
}

impl From<GgufError> for Refusal {
    fn from(error: GgufError) -> Self {
        Self { path: error.path, reason: Defect::Gguf(error.rule) }
    }
}

/// Drops the path: the caller knows which file it reads.
impl From<GgufError> for Defect {
    fn from(error: GgufError) -> Self {
        Self::Gguf(error.rule)
    }
}

/// Drops the path: the caller knows which file it reads.
impl From<FileError> for Defect {
    fn from(error: FileError) -> Self {
        let wide = |shape: Vec<usize>| shape.into_iter().map(|dim| dim as u64).collect();
        match error {
            FileError::Io { source, .. } => source.into(),
            FileError::Gguf(error) => error.into(),
            FileError::Json { source, .. } => source.into(),
            FileError::Safetensors { message, .. } => Self::Safetensors { message },
            FileError::Key { key, found, expected, .. } => Rule::BadValue { key, found, expected }.into(),
            FileError::MissingTensor { tensor, expected, .. } => {
                Rule::MissingTensor { tensor, expected: wide(expected) }.into()
            }
            FileError::ExtraTensor { tensor, .. } => Self::UnexpectedTensor { tensor },
            FileError::Shape { tensor, found, expected, .. } => {
                Self::Dimensions { tensor, found: wide(found), expected: wide(expected) }
            }
            FileError::Dtype { tensor, found, .. } => Self::TensorType { tensor, found },
            error @ (FileError::Tensor(_) | FileError::TwoPlaces { .. }) => {
                Self::NotConvertible { why: error.to_string() }
            }
        }
    }
}

/// The rules.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what each field is
pub enum Defect {
    #[error("can't be read or written: {0}")]
    Io(#[from] std::io::Error),
    #[error("is a symbolic link, which is never followed")]
    Link,
    #[error("is a {found}, expected a regular file")]
    NotAFile { found: &'static str },
    #[error("is empty: it has 0 bytes")]
    Empty,
    #[error("has {found} bytes, expected at most {limit}")]
    TooLarge { found: u64, limit: u64 },
    #[error("is no spoke: begins with {found}, expected a GGUF, safetensors or zip file")]
    UnknownFormat { found: &'static str },
    #[error("is a pickle file ({found}), which can run any code when it is read")]
    Pickle { found: &'static str },
    /// A rule of the GGUF format.
    #[error(transparent)]
    Gguf(#[from] Rule),
    #[error("key \"general.type\" is {found:?}, expected \"adapter\"")]
    NotAnAdapter { found: String },
    #[error("key \"adapter.type\" is {found:?}, expected \"lora\" or \"felix\"")]
    AdapterType { found: String },
    #[error("is a spoke for architecture {found:?}, and the post is a {expected:?}")]
    Architecture { found: String, expected: String },
    #[error("was trained on the post {found}, and the post that is served is {expected}")]
    Post { found: Digest, expected: Digest },
    #[error("was trained with the tokenizer {found}, and that of the post is {expected}")]
    Tokenizer { found: Digest, expected: Digest },
    #[error("key {key:?} is not known; keys of this kind change what is computed")]
    UnknownKey { key: String },
    #[error("tensor {tensor:?} changes {target:?}, which the post does not have")]
    UnknownTarget { tensor: String, target: String },
    #[error("tensor {tensor:?} is no part of a spoke of this kind")]
    UnexpectedTensor { tensor: String },
    #[error("tensor {tensor:?} has no partner: a change of {target:?} takes A and B")]
    Unpaired { tensor: String, target: String },
    #[error("changes nothing: it has no pair of A and B")]
    NoPairs,
    #[error("changes nothing: it has no layer")]
    NoLayers,
    #[error("has a spoke layer after block {found}, but the post has {layers} blocks")]
    UnknownLayer { found: u32, layers: u32 },
    #[error("does not say {key:?}, neither in its own metadata nor in a JSON file next to it")]
    NoConfig { key: String },
    #[error("tensor {tensor:?} has dimensions {found:?}, expected {expected:?}")]
    Dimensions { tensor: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("tensor {tensor:?} has rank {found}, and its partner {partner:?} has {expected}")]
    RankMismatch { tensor: String, partner: String, found: u64, expected: u64 },
    #[error("{what} has rank {found}, expected 1 to {limit}")]
    RankLimit { what: String, found: u64, limit: u64 },
    #[error("tensor {tensor:?} has {found} slices in its third dimension, expected 1 (no experts)")]
    Experts { tensor: String, found: u64 },
    #[error("tensor {tensor:?} has type {found}, expected F32, F16, BF16 or Q8_0")]
    TensorType { tensor: String, found: String },
    #[error("tensor {tensor:?} changes {target:?} of dimensions {found:?}, expected a matrix")]
    NotAMatrix { tensor: String, target: String, found: Vec<u64> },
    #[error("tensor {tensor:?} changes the embedding, which is the output matrix of this post too")]
    TiedEmbedding { tensor: String },
    #[error("tensor {tensor:?} holds {found} at element {at}, expected finite numbers")]
    NotFinite { tensor: String, at: u64, found: f32 },
    #[error("tensor {tensor:?} holds {found} at element {at}, expected numbers between -{bound} and {bound}")]
    OutOfRange { tensor: String, at: u64, found: f32, bound: f32 },
    #[error("has {found} {what}, expected at most {limit}")]
    TooMany { what: String, found: u64, limit: u64 },
    #[error("takes {found} bytes in memory, expected at most {limit}")]
    Resident { found: u64, limit: u64 },
    #[error("is not a safetensors file: {message}")]
    Safetensors { message: String },
    #[error("is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("is not a zip file that can be read: {message}")]
    Zip { message: String },
    #[error("has no {part:?}")]
    MissingPart { part: &'static str },
    /// A kind of spoke that can't be served. Each has its own code.
    #[error("{what}, which {why}")]
    Unsupported { code: &'static str, what: String, why: &'static str, hint: &'static str },
    #[error("has no spoke in it: key {key:?} is missing")]
    NotMerged { key: String },
    #[error("can't be converted: {why}")]
    NotConvertible { why: String },
    #[error("can't be converted without the post: {why}")]
    PostNeeded { why: &'static str },
}

impl Refusal {
    /// The operating system's error, if that is the reason.
    pub fn io(&self) -> Option<&std::io::Error> {
        match &self.reason {
            Defect::Io(error) | Defect::Gguf(Rule::Io(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether the cause is trouble of the system, which says nothing about the file.
    pub fn is_trouble(&self) -> bool {
        self.io().is_some_and(is_trouble)
    }
}

/// Whether an error is the system's fault and not the file's: no disk space, no memory, no file
/// descriptors, a failing disk. Errors not known to be caused by a file count as the system's,
/// because a retry does no harm.
pub fn is_trouble(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    if let Some(number) = errno(error) {
        return !matches!(
            Errno::from_raw_os_error(number),
            Errno::NOENT
                | Errno::ACCESS
                | Errno::PERM
                | Errno::LOOP
                | Errno::NOTDIR
                | Errno::ISDIR
                | Errno::NAMETOOLONG
                | Errno::FBIG
                | Errno::OVERFLOW
                | Errno::INVAL
                | Errno::NXIO
                | Errno::ILSEQ
        );
    }
    // Errors made by a program, not by the system, or wrapped without their number.
    !matches!(
        error.kind(),
        Kind::NotFound
            | Kind::PermissionDenied
            | Kind::InvalidData
            | Kind::InvalidInput
            | Kind::UnexpectedEof
            | Kind::WriteZero
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::Other
    )
}

/// The same for an error in a folder of our own, where a missing or protected file is trouble, too.
pub fn is_trouble_at_home(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    let of_content =
        matches!(error.kind(), Kind::InvalidData | Kind::InvalidInput | Kind::UnexpectedEof | Kind::Other);
    errno(error).is_some() || !of_content
}

/// Whether this process currently can't even open a file, or can't allocate this many bytes. That
/// explains failures whose cause isn't reported.
pub fn is_out_of_reach(path: &Path, bytes: u64) -> bool {
    let mut room = Vec::<u8>::new();
    std::fs::File::open(path).is_err_and(|error| is_trouble(&error))
        || usize::try_from(bytes).map_or(true, |bytes| room.try_reserve_exact(bytes).is_err())
}

/// The system's error message without the paths that libraries add, which clients on the network
/// must not see.
pub fn plain(error: &std::io::Error) -> String {
    errno(error).map_or_else(
        || error.kind().to_string(),
        |number| std::io::Error::from_raw_os_error(number).to_string(),
    )
}

/// The system's error number, however often the error was wrapped.
fn errno(error: &std::io::Error) -> Option<i32> {
    let mut number = error.raw_os_error();
    let mut inner: Option<&(dyn std::error::Error + 'static)> =
        error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
    while let (None, Some(wrapped)) = (number, inner) {
        number = wrapped.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        inner = wrapped.source();
    }
    number
}

impl Defect {
    /// The rule's name in the API, in snake_case; it never changes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(error) if error.kind() == std::io::ErrorKind::NotFound => "not_found",
            Self::Io(_) => "unreadable",
            Self::Link => "symlink",
            Self::NotAFile { found: "directory" } => "directory",
            Self::NotAFile { found: "FIFO" } => "fifo",
            Self::NotAFile { found: "socket" } => "socket",
            Self::NotAFile { .. } => "device",
            Self::Empty => "empty_file",
            Self::TooLarge { .. } => "too_large",
            Self::UnknownFormat { .. } => "unknown_format",
            Self::Pickle { .. } => "pickle",
            Self::Gguf(rule) => rule.code(),
            Self::NotAnAdapter { .. } => "not_an_adapter",
            Self::AdapterType { .. } => "unknown_adapter_type",
            Self::Architecture { .. } => "architecture_mismatch",
            Self::Post { .. } => "post_mismatch",
            Self::Tokenizer { .. } => "tokenizer_mismatch",
            Self::UnknownKey { .. } => "unknown_key",
            Self::UnknownTarget { .. } => "unknown_target",
            Self::UnexpectedTensor { .. } => "unexpected_tensor",
            Self::Unpaired { .. } => "unpaired_tensor",
            Self::NoPairs | Self::NoLayers => "empty_spoke",
            Self::UnknownLayer { .. } => "unknown_layer",
            Self::NoConfig { .. } => "no_config",
            Self::Dimensions { .. } => "dimensions",
            Self::RankMismatch { .. } => "rank_mismatch",
            Self::RankLimit { .. } => "rank_limit",
            Self::Experts { .. } => "expert_dimension",
            Self::TensorType { .. } => "tensor_type",
            Self::NotFinite { .. } => "not_finite",
            Self::TooMany { .. } => "too_many",
            Self::OutOfRange { .. } => "out_of_range",
            Self::NotAMatrix { .. } => "not_a_matrix",
            Self::TiedEmbedding { .. } => "tied_embedding",
            Self::Resident { .. } => "too_large_in_memory",
            Self::Safetensors { .. } => "malformed_safetensors",
            Self::Json(_) => "malformed_json",
            Self::Zip { .. } => "malformed_zip",
            Self::MissingPart { .. } => "missing_file",
            Self::Unsupported { code, .. } => code,
            Self::NotMerged { .. } => "not_merged",
            Self::NotConvertible { .. } => "not_convertible",
            Self::PostNeeded { .. } => "post_needed",
        }
    }

    /// What the file's owner can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Link => "put the file itself there",
            Self::UnknownFormat { .. } => {
                "a spoke is a GGUF file, a safetensors file, a PEFT folder or its zip archive"
            }
            Self::Pickle { .. } => {
                "load it where you trust it and save it as safetensors: safetensors.torch.save_file for a Felix spoke, \
                 save_pretrained with safe_serialization=True for PEFT"
            }
            Self::Gguf(Rule::Truncated { .. } | Rule::OutsideFile { .. }) => {
                "it is incomplete: copy it again, best under another name that is changed when it is whole"
            }
            Self::NotAnAdapter { .. } => {
                "a file that is post and spoke in one is split by `bespoke spoke import`"
            }
            Self::MissingPart { .. } => {
                "a PEFT adapter is a folder of adapter_config.json and adapter_model.safetensors"
            }
            Self::NoConfig { .. } => {
                "write num_spokes and spoke_rank into the file's __metadata__, or into a file of the same name that ends \
                 in .json"
            }
            Self::Architecture { .. } | Self::UnknownTarget { .. } | Self::UnknownLayer { .. } => {
                "it was trained on another model: serve that one, or train it on this one"
            }
            Self::Post { .. } | Self::Tokenizer { .. } => {
                "train it again on this post, or serve the post that it was trained on; if that is a Hugging Face folder which \
                 this post was made from, `bespoke spoke add FILE --trained-on FOLDER` compares the two"
            }
            Self::TiedEmbedding { .. } => "train without the embedding among the targets",
            Self::NotFinite { .. } => "its training has diverged: take an earlier checkpoint",
            Self::TensorType { .. } => "store it as F32, F16 or BF16",
            Self::PostNeeded { .. } => "give the post with --post MODEL.gguf",
            Self::NotMerged { .. } => "a model without a spoke in it needs no splitting",
            Self::Unsupported { hint, .. } => hint,
            _ => return None,
        };
        Some(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn trouble_of_the_system_is_told_from_what_lies_in_a_file() {
        let of = |number: Errno| io::Error::from(number);
        for number in [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::ROFS,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::IO,
            Errno::AGAIN,
            Errno::INTR,
            Errno::STALE,
            Errno::TIMEDOUT,
            Errno::BUSY,
        ] {
            assert!(is_trouble(&of(number)), "{number:?}");
            // Wrapped as tempfile and zip do it.
            let wrapped = io::Error::new(of(number).kind(), Wrapped(of(number)));
            assert!(is_trouble(&wrapped), "{number:?} wrapped");
        }
        for number in [Errno::NOENT, Errno::ACCESS, Errno::LOOP, Errno::ISDIR, Errno::NAMETOOLONG] {
            assert!(!is_trouble(&of(number)), "{number:?}");
            assert!(
                !is_trouble(&io::Error::new(of(number).kind(), Wrapped(of(number)))),
                "{number:?} wrapped"
            );
        }
        for kind in [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof, io::ErrorKind::Other] {
            assert!(!is_trouble(&io::Error::new(kind, "a damaged archive")), "{kind}");
        }
        let refusal = |reason: Defect| Refusal::new(Path::new("x"), reason);
        // A missing or protected file is the file's own fault, but not in our folder.
        assert!(is_trouble_at_home(&of(Errno::ACCESS)) && is_trouble_at_home(&of(Errno::NOENT)));
        assert!(!is_trouble_at_home(&io::Error::new(io::ErrorKind::UnexpectedEof, "cut off")));
        assert!(refusal(Rule::Io(of(Errno::IO)).into()).is_trouble());
        assert!(!refusal(Defect::Empty).is_trouble());
    }

    #[derive(Debug, thiserror::Error)]
    #[error("wrapped")]
    struct Wrapped(#[source] io::Error);
}
