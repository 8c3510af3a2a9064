//! One safetensors file: its header checked, its tensors read as f32 on demand; and f32 parameters written.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use half::{bf16, f16};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, View};

use super::Parameters;
use super::file_error::FileError;
use crate::durable::Staged;

/// Longest header that is read (the format's own limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open file. Only the header is in memory.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: std::fs::File,
    data_start: u64,
    header: Metadata,
}

impl SafetensorsFile {
    /// Opens a file and checks its header: every tensor's range lies in the file and has the length of its shape.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let wrong = |message: String| FileError::Safetensors { path: path.to_owned(), message };
        let mut file = std::fs::File::open(path).map_err(FileError::io(path))?;
        let length = file.metadata().map_err(FileError::io(path))?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|e| wrong(format!("the header's length: {e}")))?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER_BYTES || size + 8 > length {
            return Err(wrong(format!("a header of {size} bytes in a file of {length}")));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header).map_err(FileError::io(path))?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|e| wrong(format!("the header: {e}")))?;
        let data_start = size + 8;
        for (name, info) in header.tensors() {
            let (from, to) = info.data_offsets;
            let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &dim| n.checked_mul(dim));
            let fits = to >= from && bits == (to - from).checked_mul(8) && to as u64 <= length - data_start;
            if !fits {
                let shape = &info.shape;
                return Err(wrong(format!("tensor {name:?} of shape {shape:?} is at bytes {from} to {to}")));
            }
        }
        Ok(Self { path: path.to_owned(), file, data_start, header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes of all tensors.
    pub fn shapes(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.header.tensors().into_iter().map(|(name, info)| (name, info.shape.clone()))
    }

    /// The elements of a tensor as f32, row-major.
    ///
    /// # Errors
    /// No such tensor; a type other than F32, F16, BF16.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>, FileError> {
        let path = || self.path.clone();
        let Some(info) = self.header.info(name) else {
            return Err(FileError::MissingTensor { path: path(), tensor: name.to_owned(), expected: vec![] });
        };
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        let at = self.data_start + from as u64;
        self.file.read_exact_at(&mut bytes, at).map_err(FileError::io(&self.path))?;
        Ok(match info.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => {
                let (tensor, found) = (name.to_owned(), format!("{other:?}"));
                return Err(FileError::Dtype { path: path(), tensor, found, expected: "F32, F16 or BF16" });
            }
        })
    }
}

/// A parameter as the safetensors package wants to see it.
struct Stored<'a>(&'a Var);

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        self.0.dims()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let values = f32_values(self.0).expect("`write` has read this tensor as f32 before");
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into()
    }
    fn data_len(&self) -> usize {
        self.0.elem_count() * size_of::<f32>()
    }
}

/// The elements of an f32 tensor, row-major.
pub fn f32_values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Writes parameters as f32, atomically.
///
/// # Errors
/// A parameter that is not f32; the disk.
pub fn write(target: &Path, parameters: &Parameters) -> Result<(), FileError> {
    for (name, var) in parameters.iter() {
        if var.dtype() != candle_core::DType::F32 {
            let (tensor, found) = (name.to_owned(), format!("{:?}", var.dtype()));
            return Err(FileError::Dtype { path: target.to_owned(), tensor, found, expected: "F32" });
        }
    }
    let staged = Staged::new(target).map_err(FileError::io(target))?;
    let tensors = parameters.iter().map(|(name, var)| (name, Stored(var)));
    // transformers refuses files that do not say which framework's names they use.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(format), staged.path())
        .map_err(|e| FileError::Safetensors { path: target.to_owned(), message: e.to_string() })?;
    staged.commit().map_err(FileError::io(target))
}
