//! What adapters add to a tensor, in one pass over it: a low-rank product (LoRA) or a gated update
//! (Felix).

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::lanes::{dot, fma, sigmoid};
use super::{Matrix, composite, floats, with_floats};

/// Values that one rayon task works on.
const TASK: usize = 1 << 15;

/// `y += factor x`, in parallel.
fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y = fma(factor, *x, *y);
        }
    });
}

/// `factor x`, in parallel.
fn scaled(factor: f32, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    add_scaled(&mut y, factor, x);
    y
}

struct LowRank {
    scale: f32,
}

/// `y + scale inner B^T` for y `[..., out]`, inner `[..., r]` and B `[out, r]`: the second product
/// of a LoRA and its addition.
///
/// # Errors
/// Shapes that do not agree, operands of different types or devices.
pub fn low_rank(y: &Tensor, inner: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    if composite::is_needed(y) {
        return composite::low_rank(y, inner, b, scale);
    }
    let op = LowRank { scale: scale as f32 };
    y.contiguous()?.apply_op3(&inner.contiguous()?, &b.contiguous()?, op)
}

impl CustomOp3 for LowRank {
    fn name(&self) -> &'static str {
        "low-rank"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        inner: &CpuStorage,
        inner_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = floats(y, y_layout, self.name())?;
        let &[outputs, rank] = b_layout.dims() else {
            candle_core::bail!("low-rank: B of shape {:?}, expected [out, r]", b_layout.shape());
        };
        let rows = y.len() / outputs.max(1);
        let (y_dims, inner_dims) = (y_layout.dims(), inner_layout.dims());
        if y_dims.last() != Some(&outputs)
            || inner_dims.last() != Some(&rank)
            || inner_layout.shape().elem_count() != rows * rank
        {
            candle_core::bail!("low-rank: y {y_dims:?}, inner {inner_dims:?}, B [{outputs}, {rank}]");
        }
        let inner = Matrix::dense(inner, inner_layout.start_offset(), rows, rank);
        let b = Matrix::dense(b, b_layout.start_offset(), outputs, rank);
        let mut sum = inner.matmul(&b.t())?;
        sum.par_chunks_mut(TASK).zip(y.par_chunks(TASK)).for_each(|(sum, y)| {
            for (sum, y) in sum.iter_mut().zip(y) {
                *sum = fma(self.scale, *sum, *y);
            }
        });
        Ok((CpuStorage::F32(sum), y_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _y: &Tensor,
        inner: &Tensor,
        b: &Tensor,
        _sum: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (outputs, rank) = b.dims2()?;
        let rows = grad.reshape(((), outputs))?; // [rows, out]
        let inner_rows = inner.reshape(((), rank))?; // [rows, r]
        let scale = f64::from(self.scale);
        // Both results are small, so scaling them is cheap.
        let d_inner = (rows.matmul(b)? * scale)?.reshape(inner.shape())?;
        let d_b = (rows.t()?.matmul(&inner_rows)? * scale)?;
        Ok((Some(grad), Some(d_inner), Some(d_b)))
    }
}

struct GatedUpdate {
    share: f32,
}

/// `h + share sigmoid(bias) update` for h and update of equal shape and a single bias.
///
/// # Errors
/// Shapes that do not agree, operands of different types or devices.
pub fn gated_update(h: &Tensor, update: &Tensor, bias: &Tensor, share: f64) -> Result<Tensor> {
    if composite::is_needed(h) {
        return composite::gated_update(h, update, bias, share);
    }
    let op = GatedUpdate { share: share as f32 };
    h.contiguous()?.apply_op3(&update.contiguous()?, bias, op)
}

impl CustomOp3 for GatedUpdate {
    fn name(&self) -> &'static str {
        "gated-update"
    }

    fn cpu_fwd(
        &self,
        h: &CpuStorage,
        h_layout: &Layout,
        update: &CpuStorage,
        update_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = floats(bias, bias_layout, self.name())?;
        let &[bias] = bias else {
            candle_core::bail!("gated-update: {} gates, expected one", bias.len());
        };
        if h_layout.shape() != update_layout.shape() {
            candle_core::bail!("gated-update: h {:?}, update {:?}", h_layout.shape(), update_layout.shape());
        }
        let mut sum = floats(h, h_layout, self.name())?.to_vec();
        add_scaled(&mut sum, self.share * sigmoid(bias), floats(update, update_layout, self.name())?);
        Ok((CpuStorage::F32(sum), h_layout.shape().clone()))
    }

    fn bwd(
        &self,
        h: &Tensor,
        update: &Tensor,
        bias: &Tensor,
        _sum: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (d_update, d_bias) = with_floats([update, bias, &grad], self.name(), |[update, bias, grad]| {
            let gate = sigmoid(bias[0]);
            // Summed in the order of the tasks, whichever finished first.
            let pairs = grad.par_chunks(TASK).zip(update.par_chunks(TASK));
            let parts: Vec<f32> = pairs.map(|(grad, update)| dot(grad, update)).collect();
            let d_bias = parts.iter().sum::<f32>() * self.share * gate * (1.0 - gate);
            Ok((scaled(self.share * gate, grad), d_bias))
        })?;
        let d_update = Tensor::from_vec(d_update, h.shape(), h.device())?;
        let d_bias = Tensor::from_vec(vec![d_bias], bias.shape(), bias.device())?;
        Ok((Some(grad), Some(d_update), Some(d_bias)))
    }
}
