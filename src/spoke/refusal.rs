//! Why a file is no spoke for this post: one variant per rule, each with a stable code and, where there is one, advice.

use std::path::{Path, PathBuf};

use super::Digest;
use crate::gguf::{GgmlType, GgufError, Rule};

/// A rule that a file breaks, and the file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Refusal {
    /// The file or folder.
    pub path: PathBuf,
    /// The rule.
    #[source]
    pub reason: Reason,
}

impl Refusal {
    /// A broken rule of this file.
    pub fn new(path: &Path, reason: impl Into<Reason>) -> Self {
        Self { path: path.to_owned(), reason: reason.into() }
    }

    /// The rule's name on the wire, in snake_case; it never changes.
    pub fn code(&self) -> &'static str {
        self.reason.code()
    }

    /// What the owner of the file can do about it.
    pub fn hint(&self) -> Option<String> {
        self.reason.hint()
    }
}

impl From<GgufError> for Refusal {
    fn from(error: GgufError) -> Self {
        Self { path: error.path, reason: Reason::Gguf(error.rule) }
    }
}

/// The rules.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what each field is
pub enum Reason {
    #[error("can't be read or written: {0}")]
    Io(#[from] std::io::Error),
    #[error("is a symbolic link, which is never followed")]
    Link,
    #[error("is a {found}, expected a regular file")]
    NotAFile { found: &'static str },
    #[error("is empty")]
    Empty,
    #[error("has {found} bytes, expected at most {limit}")]
    TooLarge { found: u64, limit: u64 },
    #[error("is no spoke: begins with {found}, expected a GGUF, safetensors or zip file")]
    UnknownFormat { found: String },
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
    #[error("tensor {tensor:?} has no partner {partner:?}")]
    Unpaired { tensor: String, partner: String },
    #[error("tensor {tensor:?} has dimensions {found:?}, expected {expected:?}")]
    Dimensions { tensor: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("tensor {tensor:?} has rank {found}, and its partner {partner:?} has {expected}")]
    RankMismatch { tensor: String, partner: String, found: u64, expected: u64 },
    #[error("{what} has rank {found}, expected 1 to {limit}")]
    RankLimit { what: String, found: u64, limit: u64 },
    #[error("tensor {tensor:?} has {found} slices in its third dimension, expected 1 (no experts)")]
    Experts { tensor: String, found: u64 },
    #[error("tensor {tensor:?} has type {found}, expected {expected}")]
    TensorType { tensor: String, found: GgmlType, expected: &'static str },
    #[error("tensor {tensor:?} holds {found} at element {at}, expected finite numbers")]
    NotFinite { tensor: String, at: u64, found: f32 },
    #[error("has {found} {what}, expected at most {limit}")]
    TooMany { what: &'static str, found: u64, limit: u64 },
    #[error("takes {found} bytes in memory, expected at most {limit}")]
    Resident { found: u64, limit: u64 },
}

impl Reason {
    /// The rule's name on the wire, in snake_case; it never changes.
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
            Self::Dimensions { .. } => "dimensions",
            Self::RankMismatch { .. } => "rank_mismatch",
            Self::RankLimit { .. } => "rank_limit",
            Self::Experts { .. } => "expert_dimension",
            Self::TensorType { .. } => "tensor_type",
            Self::NotFinite { .. } => "not_finite",
            Self::TooMany { .. } => "too_many",
            Self::Resident { .. } => "too_large_in_memory",
        }
    }

    /// What the owner of the file can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Link => "put the file itself into the folder",
            Self::Pickle { .. } => {
                "convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), \
                 \"spoke.safetensors\", metadata={...})"
            }
            Self::NotAnAdapter { .. } => {
                "a file that is post and spoke in one is split by `bespoke spoke import`"
            }
            Self::Post { .. } => {
                "train the spoke again on this post, or serve the post that it was trained on"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}
