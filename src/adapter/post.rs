//! Facts of the served post that a spoke is checked against.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Digest, Refusal};
use crate::gguf::{Array, GgmlType, Gguf, GgufError, ORIGIN_KEY, Rule, TensorInfo, Value, check_model};
use crate::model::gguf_file::values::Order;

/// A post, without its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Post {
    /// llama.cpp's name of the architecture.
    pub architecture: String,
    /// Width D of the residual stream.
    pub hidden_size: u64,
    /// Number of decoder blocks.
    pub layers: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u64,
    /// Epsilon of its RMS norms, where the architecture has one.
    pub rms_eps: Option<f32>,
    /// Order and scale of the values in its file, if the architecture is known.
    pub(crate) order: Option<Order>,
    /// Every tensor, by name.
    pub tensors: BTreeMap<String, PostTensor>,
    /// Content hash of its tensors: names, dimensions, types and data, sorted by name.
    pub sha256: Digest,
    /// Content hash of the tensors that this file was made from, if recorded. It is the same for
    /// all quantisations of one model.
    pub origin: Option<Digest>,
    /// Content hashes of folders whose tensors were found to be the source of this file.
    pub kin: BTreeSet<Digest>,
    /// Identity of its tokenizer: kind, tokens, merges, scores, special ids.
    pub tokenizer: Digest,
}

/// A tensor of a post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostTensor {
    /// Dimensions in ggml's order.
    pub dims: Vec<u64>,
    /// The type in which it is stored.
    pub kind: GgmlType,
}

impl Post {
    /// Reads the facts from a GGUF file. Every weight is read once for the hash.
    ///
    /// # Errors
    /// The file is no model, or can't be read.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        let file = Gguf::open(path)?;
        check_model(&file)?;
        Ok(Self::of(&file)?)
    }

    /// Reads the facts of a file whose hash is already known.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn noted(path: &Path, sha256: Digest) -> Result<Self, Refusal> {
        let file = Gguf::open(path)?;
        check_model(&file)?;
        Ok(Self::with_hash(&file, sha256)?)
    }

    /// The facts of a file that passed [`check_model`].
    ///
    /// # Errors
    /// The file can't be read.
    pub fn of(file: &Gguf) -> Result<Self, GgufError> {
        Self::with_hash(file, file.content_hash()?)
    }

    fn with_hash(file: &Gguf, sha256: Digest) -> Result<Self, GgufError> {
        let architecture: &str = file.get("general.architecture")?;
        let key = |name: &str| format!("{architecture}.{name}");
        let tensor =
            |info: &TensorInfo| (info.name.clone(), PostTensor { dims: info.dims.clone(), kind: info.kind });
        Ok(Self {
            architecture: architecture.to_owned(),
            hidden_size: file.get::<u32>(&key("embedding_length"))?.into(),
            layers: file.get(&key("block_count"))?,
            vocabulary: file.get::<&[String]>("tokenizer.ggml.tokens")?.len() as u64,
            rms_eps: Self::rms_eps_of(file)?,
            order: Order::of_file(file)?,
            tensors: file.tensors().iter().map(tensor).collect(),
            sha256,
            origin: file.find::<&str>(ORIGIN_KEY)?.map(|text| recorded(file, text)).transpose()?,
            kin: BTreeSet::new(),
            tokenizer: hash_tokenizer(file),
        })
    }

    /// Reads the epsilon alone, and no weights.
    ///
    /// # Errors
    /// A key that is missing or has another type.
    pub fn rms_eps_of(file: &Gguf) -> Result<Option<f32>, GgufError> {
        let architecture: &str = file.get("general.architecture")?;
        file.find(&format!("{architecture}.attention.layer_norm_rms_epsilon"))
    }

    /// Whether a spoke that names this digest was trained for this post.
    pub fn is(&self, named: &Digest) -> bool {
        self.sha256 == *named || self.origin.as_ref() == Some(named) || self.kin.contains(named)
    }

    /// The digest that a spoke for this post should name: the origin if recorded.
    pub fn identity(&self) -> Digest {
        self.origin.unwrap_or(self.sha256)
    }

    /// Whether the output matrix is the embedding matrix.
    pub fn is_tied(&self) -> bool {
        !self.tensors.contains_key("output.weight")
    }
}

fn recorded(file: &Gguf, text: &str) -> Result<Digest, GgufError> {
    let (key, found) = (ORIGIN_KEY.to_owned(), format!("{text:?}"));
    let expected = "a SHA-256 in 64 hexadecimal digits".to_owned();
    text.parse().map_err(|_| file.error(Rule::BadValue { key, found, expected }))
}

/// Hashes every `tokenizer.ggml` key with its value. The chat template is excluded: it changes no
/// token.
fn hash_tokenizer(file: &Gguf) -> Digest {
    let mut keys: Vec<_> =
        file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.ggml.")).collect();
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hasher = Sha256::new();
    for (key, value) in keys {
        let mut put = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        put(key);
        match value {
            Value::String(text) => put(text),
            Value::Array(Array::String(texts)) => texts.iter().for_each(|text| put(text)),
            // Numbers: Rust prints any two different ones differently.
            other => put(&format!("{other:?}")),
        }
    }
    Digest(hasher.finalize().into())
}
