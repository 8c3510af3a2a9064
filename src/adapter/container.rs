//! A file of named tensors, independent of its format: descriptions in ggml's order, elements as
//! f32.

use std::path::Path;

use safetensors::Dtype;

use super::{Defect, Limits, Refusal};
use crate::gguf::{GgmlType, Gguf, MAX_DIMENSIONS, Rule, TensorInfo, check_contiguous};
use crate::model::safetensors_file::SafetensorsFile;

/// An open file whose header has passed the rules of its format.
#[derive(Debug, Clone, Copy)]
pub(super) enum Container<'a> {
    Gguf(&'a Gguf),
    Safetensors(&'a SafetensorsFile),
}

/// Description of a tensor in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// Four dimensions in ggml's order (row length first); missing ones are 1.
    pub dims: [u64; 4],
    /// F32, F16, BF16 or Q8_0.
    pub kind: GgmlType,
    /// Length of the data.
    pub bytes: u64,
}

impl StoredTensor {
    /// The description of a tensor in a GGUF file.
    ///
    /// # Errors
    /// A type that the engine does not compute with.
    pub fn of(info: &TensorInfo) -> Result<Self, Defect> {
        let kind = computed(&info.name, Some(info.kind), &info.kind)?;
        Ok(Self { name: info.name.clone(), dims: four(&info.dims), kind, bytes: info.bytes })
    }
}

impl<'a> Container<'a> {
    /// The file.
    pub fn path(&self) -> &'a Path {
        match self {
            Self::Gguf(file) => file.path(),
            Self::Safetensors(file) => file.path(),
        }
    }

    /// A refusal of this file for a broken rule.
    pub fn refuse(&self, reason: impl Into<Defect>) -> Refusal {
        Refusal::new(self.path(), reason)
    }

    /// All tensors, by name.
    ///
    /// # Errors
    /// Too many tensors; a type that the engine does not compute with; more than four dimensions,
    /// or one of size 0.
    pub fn tensors(&self, limits: &Limits) -> Result<Vec<StoredTensor>, Refusal> {
        let mut all = self.described(limits).map_err(|reason| self.refuse(reason))?;
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    fn described(&self, limits: &Limits) -> Result<Vec<StoredTensor>, Defect> {
        let few = |found: usize| match found as u64 {
            found if found > limits.max_tensors => {
                Err(Defect::TooMany { what: "tensors".to_owned(), found, limit: limits.max_tensors })
            }
            _ => Ok(()),
        };
        match self {
            Self::Gguf(file) => {
                few(file.tensors().len())?;
                check_contiguous(file).map_err(|error| error.rule)?;
                file.tensors().iter().map(StoredTensor::of).collect()
            }
            Self::Safetensors(file) => {
                let names: Vec<_> = file.shapes().collect();
                few(names.len())?;
                names.into_iter().map(|(name, shape)| from_safetensors(file, name, &shape)).collect()
            }
        }
    }

    /// Passes the elements of a tensor to `see`, in parts.
    ///
    /// # Errors
    /// The file can't be read; errors of `see`.
    pub fn scan(
        &self,
        tensor: &StoredTensor,
        see: impl FnMut(&[f32]) -> Result<(), Defect>,
    ) -> Result<(), Refusal> {
        let scanned = match self {
            Self::Gguf(file) => match file.tensor(&tensor.name) {
                Some(info) => file.scan_f32(info, see),
                None => Err(Rule::MissingTensor { tensor: tensor.name.clone(), expected: Vec::new() }.into()),
            },
            Self::Safetensors(file) => file.scan_f32(&tensor.name, see),
        };
        scanned.map_err(|reason| self.refuse(reason))
    }

    /// The elements of a tensor, row-major.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn values(&self, tensor: &StoredTensor) -> Result<Vec<f32>, Refusal> {
        let mut values = Vec::new();
        self.scan(tensor, |part| {
            values.extend_from_slice(part);
            Ok(())
        })?;
        Ok(values)
    }

    /// The sum of the squares of a tensor's elements.
    ///
    /// # Errors
    /// An element that is no finite number, or larger than `bound`; the file can't be read.
    pub fn square_sum(&self, tensor: &StoredTensor, bound: f32) -> Result<f64, Refusal> {
        let (mut at, mut sum) = (0, 0.0);
        self.scan(tensor, |part| {
            for &found in part {
                if !found.is_finite() {
                    return Err(Defect::NotFinite { tensor: tensor.name.clone(), at, found });
                }
                if found.abs() > bound {
                    return Err(Defect::OutOfRange { tensor: tensor.name.clone(), at, found, bound });
                }
                sum += f64::from(found) * f64::from(found);
                at += 1;
            }
            Ok(())
        })?;
        Ok(sum)
    }
}

fn from_safetensors(file: &SafetensorsFile, name: String, shape: &[usize]) -> Result<StoredTensor, Defect> {
    let dims: Vec<u64> = shape.iter().rev().map(|&dim| dim as u64).collect();
    if dims.len() > MAX_DIMENSIONS as usize {
        return Err(Rule::Rank { tensor: name, found: dims.len() as u32 }.into());
    }
    if dims.contains(&0) {
        return Err(Rule::EmptyDimension { tensor: name, dims }.into());
    }
    let info = file.info(&name).expect("the name is one of this file's");
    let kind = match info.dtype {
        Dtype::F32 => Some(GgmlType::F32),
        Dtype::F16 => Some(GgmlType::F16),
        Dtype::BF16 => Some(GgmlType::BF16),
        _ => None,
    };
    let kind = computed(&name, kind, &format!("{:?}", info.dtype))?;
    let (from, to) = info.data_offsets;
    Ok(StoredTensor { name, dims: four(&dims), kind, bytes: (to - from) as u64 })
}

/// The type, if both this program and llama.cpp compute with spokes of it.
fn computed(name: &str, kind: Option<GgmlType>, found: &dyn std::fmt::Display) -> Result<GgmlType, Defect> {
    match kind {
        Some(kind @ (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0)) => Ok(kind),
        _ => Err(Defect::TensorType { tensor: name.to_owned(), found: found.to_string() }),
    }
}

/// Dimensions in ggml's fixed-size form. The caller has checked that there are at most four.
pub(super) fn four(dims: &[u64]) -> [u64; 4] {
    std::array::from_fn(|at| dims.get(at).copied().unwrap_or(1))
}
