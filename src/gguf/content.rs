//! The identity of a model's weights: one hash of its tensors, whatever else stands in the file.

use sha2::{Digest as _, Sha256};

use super::{GgmlType, Gguf, GgufError};
use crate::digest::Digest;

/// Hashes tensors in the order of their names: name, dimensions, type and data of each.
#[derive(Debug, Default)]
pub struct TensorHasher(Sha256);

impl TensorHasher {
    /// Adds a tensor. The caller goes by names in ascending order.
    pub fn add(&mut self, name: &str, dims: &[u64], kind: GgmlType, bytes: &[u8]) {
        // Lengths first: nothing can move from one field into the next.
        self.0.update((name.len() as u64).to_le_bytes());
        self.0.update(name);
        self.0.update((dims.len() as u64).to_le_bytes());
        for dim in dims {
            self.0.update(dim.to_le_bytes());
        }
        self.0.update(kind.id().to_le_bytes());
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The hash of what was added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl Gguf {
    /// The hash of all tensors; each is read once.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn content_hash(&self) -> Result<Digest, GgufError> {
        let mut tensors: Vec<_> = self.tensors().iter().collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut hasher = TensorHasher::default();
        for tensor in tensors {
            hasher.add(&tensor.name, &tensor.dims, tensor.kind, &self.tensor_bytes(tensor)?);
        }
        Ok(hasher.finish())
    }
}
