//! Tensor data as f32, whatever it is stored as.

use half::{bf16, f16};

use super::{GgmlType, Gguf, GgufError, Rule, TensorInfo};

impl Gguf {
    /// The elements of a tensor as f32, row-major; Q8_0 is dequantised.
    ///
    /// # Errors
    /// No such tensor; a type other than F32, F16, BF16, Q8_0; the file can't be read.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let missing = || self.error(Rule::MissingTensor { tensor: name.to_owned(), expected: Vec::new() });
        let tensor = self.tensor(name).ok_or_else(missing)?;
        let convert = decoder(tensor).map_err(|rule| self.error(rule))?;
        Ok(convert(&self.tensor_bytes(tensor)?))
    }

    /// Hands the elements of a tensor to `see` as f32, row-major, a part at a time: memory stays small for any tensor.
    ///
    /// # Errors
    /// A type other than F32, F16, BF16, Q8_0; the file can't be read; what `see` says.
    pub fn scan_f32<E: From<GgufError>>(
        &self,
        tensor: &TensorInfo,
        mut see: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let convert = decoder(tensor).map_err(|rule| self.error(rule))?;
        // Whole blocks, about a quarter of a megabyte.
        let part = tensor.kind.block_bytes() * ((1 << 18) / tensor.kind.block_bytes());
        let mut buffer = vec![0; tensor.bytes.min(part) as usize];
        let mut from = 0;
        while from < tensor.bytes {
            let count = (tensor.bytes - from).min(part);
            let bytes = &mut buffer[..count as usize];
            self.fill_from_tensor(tensor, from, bytes)?;
            see(&convert(bytes))?;
            from += count;
        }
        Ok(())
    }
}

/// Stored bytes to elements.
type Decode = fn(&[u8]) -> Vec<f32>;

fn decoder(tensor: &TensorInfo) -> Result<Decode, Rule> {
    match tensor.kind {
        GgmlType::F32 => Ok(|bytes| bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        GgmlType::F16 => {
            Ok(|bytes| bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect())
        }
        GgmlType::BF16 => {
            Ok(|bytes| bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect())
        }
        GgmlType::Q8_0 => Ok(dequantise_q8_0),
        found => {
            Err(Rule::TensorType { tensor: tensor.name.clone(), found, expected: "F32, F16, BF16 or Q8_0" })
        }
    }
}

/// Blocks of an f16 scale and 32 signed bytes.
fn dequantise_q8_0(bytes: &[u8]) -> Vec<f32> {
    let (blocks, _) = bytes.as_chunks::<34>();
    let mut values = Vec::with_capacity(blocks.len() * 32);
    for block in blocks {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        values.extend(block[2..].iter().map(|&q| f32::from(q.cast_signed()) * scale));
    }
    values
}
