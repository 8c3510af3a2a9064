//! Operations of the decoder with exact backward passes. In f32 on the CPU they are fused and run
//! on rayon's threads; on a GPU, and in bf16, they are composed of Candle's tensor operations
//! (`composite/`). Tests check the two forms against each other.
//!
//! Autograd is Candle's; each operation here is one node of its graph and reads its operands as
//! slices. Operations use the rayon pool of the caller, so a caller that splits a batch itself runs
//! each part in its own pool without competition.

pub mod adapter;
pub mod attention;
mod composite;
pub mod cross_entropy;
pub(super) mod custom_grad;
pub mod decay;
pub mod delta_rule;
pub mod distillation;
mod fused_linear_loss;
pub mod gated;
pub mod grad_sink;
pub mod linear;
pub mod rms_norm;
pub mod rotary;
pub mod short_convolution;

pub use adapter::{gated_update, low_rank};
pub use attention::{Scoring, attention};
pub use cross_entropy::{CrossEntropy, linear_cross_entropy};
pub use decay::decay;
pub use delta_rule::delta_rule;
pub use gated::{geglu, sigmoid_gate, silu, swiglu};
pub use grad_sink::Gradients;
pub use linear::{add_bias, linear};
pub use rms_norm::rms_norm;
pub use rotary::{RotaryTable, rotary};
pub use short_convolution::short_convolution;

use crate::simd_math as lanes;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor};

/// Rows that one rayon task works on: enough to outweigh the cost of a task.
const ROWS_PER_TASK: usize = 64;

/// The contiguous f32 values of a storage.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [f32]> {
    let Some((from, to)) = layout.contiguous_offsets() else {
        candle_core::bail!("{op}: operand of shape {:?} is not contiguous", layout.shape());
    };
    Ok(&storage.as_slice::<f32>()?[from..to])
}

/// Calls `f` with the contiguous f32 values of CPU tensors.
pub(crate) fn with_floats<const N: usize, R>(
    tensors: [&Tensor; N],
    op: &str,
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage) = &**storage else {
            candle_core::bail!("{op}: only tensors in CPU memory are supported");
        };
        *slice = floats(storage, layout, op)?;
    }
    f(slices)
}

/// The values of a tensor as f32 in CPU memory; the tensor itself if they already are.
pub(crate) fn on_host(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)
}

/// A strided matrix inside a storage.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    storage: &'a CpuStorage,
    offset: usize,
    rows: usize,
    columns: usize,
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// A dense row-major matrix that begins at `offset`.
    fn dense(storage: &'a CpuStorage, offset: usize, rows: usize, columns: usize) -> Self {
        Self { storage, offset, rows, columns, strides: [columns, 1] }
    }

    /// The transpose, without copying.
    fn t(self) -> Self {
        let [row, column] = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: [column, row], ..self }
    }

    fn layout(&self) -> Layout {
        Layout::new((self.rows, self.columns).into(), self.strides.to_vec(), self.offset)
    }

    /// `self x other`, dense.
    fn matmul(&self, other: &Self) -> Result<Vec<f32>> {
        let sizes = (1, self.rows, other.columns, self.columns);
        match self.storage.matmul(other.storage, sizes, &self.layout(), &other.layout())? {
            CpuStorage::F32(values) => Ok(values),
            other => candle_core::bail!("matrix product gave {:?}, expected F32", other.dtype()),
        }
    }
}

#[cfg(test)]
mod tests;
