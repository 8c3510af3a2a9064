//! Product with a weight matrix in its `[out, in]` layout: one GEMM forward, two backward, no
//! transposed copy.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use super::grad_sink::hand_over;

struct Linear;

/// `x W^T` for x `[..., in]` and W `[out, in]`, giving `[..., out]` in the type of x. A W of
/// another type (f32 when x is bf16) is cast for the product only, and its gradient has W's type.
///
/// # Errors
/// Operands with different `in` or on different devices.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, Linear)
}

/// `y + bias` for y `[..., out]` and a bias `[out]`. Computed in f32, because the gradient of the
/// bias is a sum over all rows.
///
/// # Errors
/// Shapes that do not agree.
pub fn add_bias(y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if y.dtype() == DType::F32 {
        return y.broadcast_add(bias);
    }
    y.to_dtype(DType::F32)?.broadcast_add(&bias.to_dtype(DType::F32)?)?.to_dtype(y.dtype())
}

/// Rows and columns of a tensor seen as a matrix of its last dimension.
fn as_matrix(dims: &[usize]) -> (usize, usize) {
    let columns = dims.last().copied().unwrap_or(1);
    (dims.iter().product::<usize>() / columns.max(1), columns)
}

/// The product on any device.
fn product<S: BackendStorage>(
    (x, x_layout): (&S, &Layout),
    (weight, weight_layout): (&S, &Layout),
) -> Result<(S, Shape)> {
    let (rows, inputs) = as_matrix(x_layout.dims());
    let &[outputs, expected] = weight_layout.dims() else {
        candle_core::bail!("linear: weight of shape {:?}, expected [out, in]", weight_layout.shape());
    };
    if inputs != expected {
        candle_core::bail!("linear: x has {inputs} columns, the weight takes {expected}");
    }
    let x_matrix = Layout::new((rows, inputs).into(), vec![inputs, 1], x_layout.start_offset());
    let transposed = |offset| Layout::new((inputs, outputs).into(), vec![1, inputs], offset);
    let sizes = (1, rows, outputs, inputs);
    let y = if weight.dtype() == x.dtype() {
        x.matmul(weight, sizes, &x_matrix, &transposed(weight_layout.start_offset()))?
    } else {
        let cast = weight.to_dtype(weight_layout, x.dtype())?;
        x.matmul(&cast, sizes, &x_matrix, &transposed(0))?
    };
    let mut shape = x_layout.dims().to_vec();
    *shape.last_mut().expect("x has a last dimension: it has columns") = outputs;
    Ok((y, shape.into()))
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
        product((x, x_layout), (weight, weight_layout))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        product((x, x_layout), (weight, weight_layout))
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
        let x_grad = grad.matmul(&weight.to_dtype(grad.dtype())?)?.reshape(x.dims())?;
        // A frozen weight needs no gradient, which saves half of the work.
        if !weight.track_op() {
            return Ok((Some(x_grad), None));
        }
        let x_rows = x.reshape(as_matrix(x.dims()))?; // [rows, in]
        let weight_grad = grad.t()?.matmul(&x_rows)?.to_dtype(weight.dtype())?;
        Ok((Some(x_grad), hand_over(weight, weight_grad)?))
    }
}
