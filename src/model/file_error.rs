//! What can be wrong with a model's files, whatever their format.

use std::path::{Path, PathBuf};

use crate::gguf::GgufError;

/// Why a model can't be read from files or written to them.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its error.
        source: std::io::Error,
    },
    /// Not JSON, or not of the expected form.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A key is missing or has an unusable value.
    #[error("{}: key {key:?} is {found}, expected {expected}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key, with its parents.
        key: String,
        /// Its value, or `missing`.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// Not a safetensors file.
    #[error("{}: not a safetensors file: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A parameter that the configuration asks for is not there.
    #[error("{}: tensor {tensor:?} is missing, expected shape {expected:?}", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The parameter.
        tensor: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor that is no parameter of the configuration.
    #[error("{}: tensor {tensor:?} of shape {found:?} is no parameter of this configuration", path.display())]
    ExtraTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A parameter whose shape differs from the configuration's.
    #[error("{}: tensor {tensor:?} has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file or folder.
        path: PathBuf,
        /// The parameter.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor of an unsupported type.
    #[error("{}: tensor {tensor:?} is stored as {found}, expected {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
        /// The supported types.
        expected: &'static str,
    },
    /// Two files for the same thing, of which only one can be meant.
    #[error("{} and {} stand side by side, and only one can be meant: {why}", one.display(), other.display())]
    TwoPlaces {
        /// The first.
        one: PathBuf,
        /// The second.
        other: PathBuf,
        /// What goes wrong with both.
        why: String,
    },
    /// A broken rule of GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Candle can't make or read a tensor.
    #[error("tensor: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// How to extract the text model from a multimodal one.
const TEXT_ALONE: &str = "save the text model alone, in transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)";

impl FileError {
    /// For `map_err` on calls about a file.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        |source| Self::Io { path: path.to_owned(), source }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Key { key, expected, found, .. } => match key.as_str() {
                _ if expected.contains("llama.cpp") => Some(
                    "the folder can be trained and judged as it is; only a GGUF file can't be made of it",
                ),
                "vision_config" | "audio_config" | "text_config" => Some(TEXT_ALONE),
                // A multimodal model.
                "architectures" if found.contains("ForConditionalGeneration") => Some(TEXT_ALONE),
                "architectures" | "model_type" => Some("docs/formats.md lists the architectures"),
                _ => None,
            },
            Self::MissingTensor { .. } | Self::ExtraTensor { .. } | Self::Shape { .. } => {
                Some("the configuration and the weights are not of one model, or one of them was changed")
            }
            Self::TwoPlaces { .. } => Some("move one of them to another folder"),
            Self::Dtype { .. } => Some("store the weights as BF16, F16 or F32"),
            Self::Safetensors { .. } | Self::Json { .. } => {
                Some("the file is damaged, or its download incomplete")
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Some(
                "make room: nothing is left of what could not be written whole, and what was there stays",
            ),
            Self::Io { .. } | Self::Gguf(_) | Self::Tensor(_) => None,
        }
    }

    /// An error about a key with an unusable value.
    pub fn key(
        path: &Path,
        key: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        let (key, found, expected) = (key.into(), found.into(), expected.into());
        Self::Key { path: path.to_owned(), key, found, expected }
    }
}
