//! The identity of a model's weights: one hash over all tensors, independent of anything else in
//! the file.

use sha2::{Digest as _, Sha256};

use super::{GgmlType, Gguf, GgufError};
use crate::digest::Digest;

/// Bytes that are read at a time.
const PART: usize = 1 << 20;

/// Hashes tensors in the order of their names: name, dimensions, type and data of each.
#[derive(Debug, Default)]
pub struct TensorHasher(Sha256);

impl TensorHasher {
    /// Adds a tensor. The caller must add tensors in ascending order of their names.
    pub fn add(&mut self, name: &str, dims: &[u64], kind: GgmlType, bytes: &[u8]) {
        self.begin(name, dims, kind, bytes.len() as u64);
        self.0.update(bytes);
    }

    /// Begins a tensor with this many bytes of data, which must follow.
    fn begin(&mut self, name: &str, dims: &[u64], kind: GgmlType, bytes: u64) {
        // Hash lengths first, so that no byte can move from one field to the next.
        self.0.update((name.len() as u64).to_le_bytes());
        self.0.update(name);
        self.0.update((dims.len() as u64).to_le_bytes());
        for dim in dims {
            self.0.update(dim.to_le_bytes());
        }
        self.0.update(kind.id().to_le_bytes());
        self.0.update(bytes.to_le_bytes());
    }

    /// The hash of the added tensors.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl Gguf {
    /// The hash of all tensors. Reads each tensor once.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn content_hash(&self) -> Result<Digest, GgufError> {
        let mut tensors: Vec<_> = self.tensors().iter().collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut hasher = TensorHasher::default();
        // Read parts, because the embedding of a large vocabulary is most of a small model.
        let mut part = vec![0; PART];
        for tensor in tensors {
            hasher.begin(&tensor.name, &tensor.dims, tensor.kind, tensor.bytes);
            for from in (0..tensor.bytes).step_by(PART) {
                let part = &mut part[..(tensor.bytes - from).min(PART as u64) as usize];
                self.fill_from_tensor(tensor, from, part)?;
                hasher.0.update(part);
            }
        }
        Ok(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_that_is_read_in_parts_has_the_hash_of_the_whole() {
        let file = Gguf::open(&crate::config::default_model()).unwrap();
        let mut tensors: Vec<_> = file.tensors().iter().collect();
        assert!(tensors.iter().any(|t| t.bytes > PART as u64 && t.bytes % PART as u64 != 0));
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut hasher = TensorHasher::default();
        for tensor in tensors {
            hasher.add(&tensor.name, &tensor.dims, tensor.kind, &file.tensor_bytes(tensor).unwrap());
        }
        assert_eq!(file.content_hash().unwrap(), hasher.finish());
    }
}
