//! Tensor data as f32, whatever the stored type, by ggml's own conversions, so that weights have
//! the values that llama.cpp uses.

use super::Dequantise;
use super::{GgmlType, Gguf, GgufError, Rule, TensorInfo};

impl Gguf {
    /// The elements of a tensor as f32, row-major; quantised types are dequantised.
    ///
    /// # Errors
    /// The tensor is missing, its type is an integer or for intermediate results, or the file can't
    /// be read.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let missing = || self.error(Rule::MissingTensor { tensor: name.to_owned(), expected: Vec::new() });
        let tensor = self.tensor(name).ok_or_else(missing)?;
        let mut values = Vec::with_capacity(tensor.dims.iter().product::<u64>() as usize);
        self.scan_f32(tensor, |part| {
            values.extend_from_slice(part);
            Ok::<_, GgufError>(())
        })?;
        Ok(values)
    }

    /// Passes the elements of a tensor to `see` as f32, row-major and in parts, so that memory use
    /// is small for any tensor.
    ///
    /// # Errors
    /// The type is an integer or for intermediate results, the file can't be read, or `see` fails.
    pub fn scan_f32<E: From<GgufError>>(
        &self,
        tensor: &TensorInfo,
        mut see: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let decode = Decode::of(tensor).map_err(|rule| self.error(rule))?;
        // Whole blocks, about a quarter of a megabyte.
        let part = tensor.kind.block_bytes() * ((1 << 18) / tensor.kind.block_bytes());
        let mut buffer = vec![0; tensor.bytes.min(part) as usize];
        let (mut from, mut values) = (0, Vec::new());
        while from < tensor.bytes {
            let count = (tensor.bytes - from).min(part);
            let bytes = &mut buffer[..count as usize];
            self.fill_from_tensor(tensor, from, bytes)?;
            values.clear();
            decode.append(bytes, &mut values);
            see(&values)?;
            from += count;
        }
        Ok(())
    }
}

/// How stored bytes become elements.
enum Decode {
    F32,
    F64,
    Ggml(Dequantise),
}

impl Decode {
    fn of(tensor: &TensorInfo) -> Result<Self, Rule> {
        match tensor.kind {
            GgmlType::F32 => Ok(Self::F32),
            // ggml never computes with F64, but a file may contain such weights.
            GgmlType::F64 => Ok(Self::F64),
            kind => Dequantise::of(kind).map(Self::Ggml).ok_or_else(|| Rule::TensorType {
                tensor: tensor.name.clone(),
                found: kind,
                expected: "floats, or a quantisation that ggml turns back into floats",
            }),
        }
    }

    fn append(&self, bytes: &[u8], values: &mut Vec<f32>) {
        match self {
            Self::F32 => values.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
            Self::F64 => values.extend(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
            Self::Ggml(dequantise) => dequantise.append(bytes, values),
        }
    }
}
