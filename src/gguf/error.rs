//! Errors of GGUF files: one variant per rule that a file can break.

use std::path::{Path, PathBuf};

use super::{GgmlType, MAX_DIMENSIONS, MAX_KEY_BYTES, MAX_TENSOR_NAME_BYTES};

/// A rule that a file breaks.
#[derive(Debug, thiserror::Error)]
#[error("{}: {rule}", path.display())]
pub struct GgufError {
    /// Path of the file.
    pub path: PathBuf,
    /// The rule.
    #[source]
    pub rule: Rule,
}

impl GgufError {
    /// An error for a file that breaks this rule.
    pub fn new(path: &Path, rule: impl Into<Rule>) -> Self {
        Self { path: path.to_owned(), rule: rule.into() }
    }
}

/// The rules. `at` is a byte position in the file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what each field is
pub enum Rule {
    #[error("can't be read or written: {0}")]
    Io(#[from] std::io::Error),
    #[error("is a {found}, expected a regular file")]
    NotAFile { found: &'static str },
    #[error("is not a GGUF file: begins with {found:02x?}, expected 47 47 55 46 (\"GGUF\")")]
    Magic { found: Vec<u8> },
    #[error("is GGUF version {found}, expected 2 or 3")]
    Version { found: u32 },
    #[error("is a big-endian GGUF file; only little-endian files are supported")]
    BigEndian,
    #[error("ends at byte {length} in the middle of {what}, which needs {needed} bytes from byte {at} on")]
    Truncated { what: String, at: u64, needed: u64, length: u64 },
    #[error("claims {found} {what}; the {left} bytes that are left can hold at most {most}")]
    Count { what: String, found: u64, most: u64, left: u64 },
    #[error("has a header longer than {limit} bytes: {what} needs {needed} bytes from byte {at} on")]
    HeaderLimit { what: String, at: u64, needed: u64, limit: u64 },
    #[error("key number {index} is {found} bytes long, expected 1 to {MAX_KEY_BYTES}")]
    KeyLength { index: u64, found: u64 },
    #[error("tensor name number {index} is {found} bytes long, expected 1 to {MAX_TENSOR_NAME_BYTES}")]
    TensorNameLength { index: u64, found: u64 },
    #[error("{what} is not UTF-8 (byte {at})")]
    NotUtf8 { what: String, at: u64 },
    #[error("{what} holds a zero byte, where llama.cpp would see it end")]
    ZeroByte { what: String },
    #[error("duplicate key {key:?}")]
    DuplicateKey { key: String },
    #[error("duplicate tensor {tensor:?}")]
    DuplicateTensor { tensor: String },
    #[error("key {key:?} has value type {found}, expected 0 to 12")]
    UnknownValueType { key: String, found: u32 },
    #[error("key {key:?} is an array of arrays, which nothing reads")]
    NestedArray { key: String },
    #[error("key {key:?} has {found} where a bool (0 or 1) is expected")]
    BadBool { key: String, found: u8 },
    #[error("key {key:?} is missing, expected {expected}")]
    MissingKey { key: String, expected: &'static str },
    #[error("key {key:?} is {found}, expected {expected}")]
    WrongType { key: String, found: String, expected: &'static str },
    #[error("key {key:?} is {found}, expected {expected}")]
    BadValue { key: String, found: String, expected: String },
    #[error("key \"general.alignment\" is {found}, expected a power of two from 8 to 1048576")]
    Alignment { found: u32 },
    #[error("tensor {tensor:?} has {found} dimensions, expected 1 to {MAX_DIMENSIONS}")]
    Rank { tensor: String, found: u32 },
    #[error("tensor {tensor:?} has a dimension of size 0: {dims:?}")]
    EmptyDimension { tensor: String, dims: Vec<u64> },
    #[error("tensor {tensor:?} has type {found}, which is not a known tensor type")]
    UnknownTensorType { tensor: String, found: u32 },
    #[error("tensor {tensor:?} of type {kind} has rows of {row} elements, expected a multiple of {block}")]
    RowNotBlocks { tensor: String, kind: GgmlType, row: u64, block: u64 },
    #[error("tensor {tensor:?} has dimensions {dims:?}, whose product exceeds any file size")]
    SizeOverflow { tensor: String, dims: Vec<u64> },
    #[error("tensor {tensor:?} is at offset {offset}, expected a multiple of {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    #[error("tensor {tensor:?} needs {bytes} bytes from offset {offset} of the data; there are {available}")]
    OutsideFile { tensor: String, offset: u64, bytes: u64, available: u64 },
    #[error("tensors {first:?} and {second:?} overlap at offset {offset} of the data")]
    Overlap { first: String, second: String, offset: u64 },
    #[error("tensor {tensor:?} is missing, expected dimensions {expected:?}")]
    MissingTensor { tensor: String, expected: Vec<u64> },
    #[error("tensor {tensor:?} is not part of architecture {architecture:?}")]
    UnexpectedTensor { tensor: String, architecture: String },
    #[error("tensor {tensor:?} has dimensions {found:?}, expected {expected:?}")]
    Dimensions { tensor: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("tensor {tensor:?} has type {found}, expected {expected}")]
    TensorType { tensor: String, found: GgmlType, expected: &'static str },
    #[error(
        "tensor {tensor:?} is at offset {found} of the data, expected {expected} (right after the one before)"
    )]
    NotContiguous { tensor: String, found: u64, expected: u64 },
    #[error("key {key:?} has {found} entries, expected {expected} ({why})")]
    ArrayLength { key: String, found: u64, expected: u64, why: &'static str },
    #[error("\"tokenizer.ggml.tokens\" has {token:?} twice, as {first} and {second}")]
    DuplicateToken { token: String, first: usize, second: usize },
    #[error("is part of a model in {found} files; only single-file models are supported")]
    Split { found: u16 },
    #[error("tensor {tensor:?} was given {found} bytes, expected {expected}")]
    DataLength { tensor: String, found: u64, expected: u64 },
}

impl Rule {
    /// The rule's code in machine-readable output, in snake_case. It never changes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "unreadable",
            Self::NotAFile { .. } => "not_a_file",
            Self::Magic { .. } => "not_gguf",
            Self::Version { .. } => "gguf_version",
            Self::BigEndian => "big_endian",
            Self::Truncated { .. } => "truncated",
            Self::Count { .. } => "count",
            Self::HeaderLimit { .. } => "header_limit",
            Self::KeyLength { .. } => "key_length",
            Self::TensorNameLength { .. } => "tensor_name_length",
            Self::NotUtf8 { .. } => "not_utf8",
            Self::ZeroByte { .. } => "zero_byte",
            Self::DuplicateKey { .. } => "duplicate_key",
            Self::DuplicateTensor { .. } => "duplicate_tensor",
            Self::UnknownValueType { .. } => "unknown_value_type",
            Self::NestedArray { .. } => "nested_array",
            Self::BadBool { .. } => "bad_bool",
            Self::MissingKey { .. } => "missing_key",
            Self::WrongType { .. } => "wrong_type",
            Self::BadValue { .. } => "bad_value",
            Self::Alignment { .. } => "alignment",
            Self::Rank { .. } => "dimension_count",
            Self::EmptyDimension { .. } => "empty_dimension",
            Self::UnknownTensorType { .. } => "unknown_tensor_type",
            Self::RowNotBlocks { .. } => "row_not_blocks",
            Self::SizeOverflow { .. } => "size_overflow",
            Self::Misaligned { .. } => "misaligned",
            Self::OutsideFile { .. } => "outside_file",
            Self::Overlap { .. } => "overlap",
            Self::MissingTensor { .. } => "missing_tensor",
            Self::UnexpectedTensor { .. } => "unexpected_tensor",
            Self::Dimensions { .. } => "dimensions",
            Self::TensorType { .. } => "tensor_type",
            Self::NotContiguous { .. } => "not_contiguous",
            Self::ArrayLength { .. } => "array_length",
            Self::DuplicateToken { .. } => "duplicate_token",
            Self::Split { .. } => "split",
            Self::DataLength { .. } => "data_length",
        }
    }
}
