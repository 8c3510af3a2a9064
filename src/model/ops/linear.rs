//! Product with a weight matrix in its `[out, in]` layout: one GEMM forward, two backward, no transposed copy.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::Matrix;
use super::collect::hand_over;

struct Linear;

/// `x W^T` for x `[..., in]` and W `[out, in]`, giving `[..., out]`.
///
/// # Errors
/// Operands that are not f32 in CPU memory or whose `in` differ.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, Linear)
}

/// Rows and columns of a tensor seen as a matrix of its last dimension.
fn as_matrix(dims: &[usize]) -> (usize, usize) {
    let columns = dims.last().copied().unwrap_or(1);
    (dims.iter().product::<usize>() / columns.max(1), columns)
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = as_matrix(x_layout.dims());
        let &[outputs, expected] = weight_layout.dims() else {
            candle_core::bail!("linear: weight of shape {:?}, expected [out, in]", weight_layout.shape());
        };
        if inputs != expected {
            candle_core::bail!("linear: x has {inputs} columns, the weight takes {expected}");
        }
        let x = Matrix::dense(x, x_layout.start_offset(), rows, inputs);
        let weight = Matrix::dense(weight, weight_layout.start_offset(), outputs, inputs);
        let mut shape = x_layout.dims().to_vec();
        *shape.last_mut().expect("x has a last dimension: it has columns") = outputs;
        Ok((CpuStorage::F32(x.matmul(&weight.t())?), shape.into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let grad = grad.reshape(as_matrix(grad.dims()))?; // [rows, out]
        let x_grad = grad.matmul(weight)?.reshape(x.dims())?;
        // A frozen weight needs none: half of the work.
        if !weight.track_op() {
            return Ok((Some(x_grad), None));
        }
        let x_rows = x.reshape(as_matrix(x.dims()))?; // [rows, in]
        Ok((Some(x_grad), hand_over(weight, grad.t()?.matmul(&x_rows)?)?))
    }
}
