//! RMS normalisation (Zhang & Sennrich 2019, equation 4) over the last dimension.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{ROWS_PER_TASK, composite, floats, lanes, with_floats};

struct RmsNorm {
    eps: f32,
}

/// `x / sqrt(mean(x^2) + eps) * weight` for x `[..., D]` and weight `[D]`.
///
/// # Errors
/// Operands of different types or devices, or with different D.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if composite::is_needed(x) {
        return composite::rms_norm(x, weight, eps);
    }
    x.contiguous()?.apply_op2(weight, RmsNorm { eps: eps as f32 })
}

/// `1 / sqrt(mean(x^2) + eps)` of one row.
#[inline]
pub(super) fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (lanes::dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// Gradient of one row: `dx` is written, `dw` is added to.
///
/// With u = g w and r = 1/rms: dx = r (u - x r^2 mean(u x)), dw = g x r.
#[inline]
pub(super) fn row_gradient(x: &[f32], weight: &[f32], g: &[f32], eps: f32, dx: &mut [f32], dw: &mut [f32]) {
    let r = inverse_rms(x, eps);
    for ((dx, g), w) in dx.iter_mut().zip(g).zip(weight) {
        *dx = g * w;
    }
    let along = lanes::dot(dx, x) * r * r / x.len() as f32;
    for (((dx, dw), x), g) in dx.iter_mut().zip(dw).zip(x).zip(g) {
        *dx = r * (*dx - x * along);
        *dw += g * x * r;
    }
}

/// Sums per-task gradients in task order, so that the result doesn't depend on which thread
/// finished first.
pub(super) fn ordered_sum(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut total = vec![0.0; len];
    for part in parts {
        lanes::add(&mut total, &part);
    }
    total
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (floats(x, x_layout, self.name())?, floats(weight, weight_layout, self.name())?);
        let width = weight.len();
        if x_layout.dims().last() != Some(&width) {
            candle_core::bail!("rms-norm: x of shape {:?}, weight of {width}", x_layout.shape());
        }
        let mut y = vec![0.0; x.len()];
        let task = width * ROWS_PER_TASK;
        y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let r = inverse_rms(x, self.eps);
                for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                    *y = x * r * w;
                }
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = with_floats([x, weight, &grad], self.name(), |[x, weight, grad]| {
            let width = weight.len();
            let task = width * ROWS_PER_TASK;
            let mut dx = vec![0.0; x.len()];
            let parts: Vec<Vec<f32>> = dx
                .par_chunks_mut(task)
                .zip(x.par_chunks(task).zip(grad.par_chunks(task)))
                .map(|(dx, (x, grad))| {
                    let mut dw = vec![0.0; width];
                    let rows = x.chunks_exact(width).zip(grad.chunks_exact(width));
                    for (dx, (x, grad)) in dx.chunks_exact_mut(width).zip(rows) {
                        row_gradient(x, weight, grad, self.eps, dx, &mut dw);
                    }
                    dw
                })
                .collect();
            Ok((dx, ordered_sum(parts, width)))
        })?;
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(dw, weight.shape(), device)?),
        ))
    }
}
