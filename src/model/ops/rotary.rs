//! Rotary positions (Su et al. 2021) in Hugging Face's half-rotation layout, of whole heads or
//! their first dimensions, fused with an RMS norm per head.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::rms_norm::{inverse_rms, ordered_sum, row_gradient};
use super::{ROWS_PER_TASK, composite, floats, with_floats};
use crate::model::RopeScaling;

/// Cosines and sines of every position, each `[positions, rotary_dim / 2]`.
#[derive(Debug)]
pub struct RotaryTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    /// Both as tensors on the first device that asked.
    elsewhere: OnceLock<(Tensor, Tensor)>,
}

impl RotaryTable {
    /// The angles `position * theta^(-2 i / rotary_dim)`, computed in f64; with Llama 3's scaling
    /// of the low frequencies if given.
    pub fn new(positions: usize, rotary_dim: usize, theta: f64, scaling: Option<&RopeScaling>) -> Self {
        let half = rotary_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| {
                let frequency = theta.powf(-2.0 * i as f64 / rotary_dim as f64);
                scaling.map_or(frequency, |scaling| scaling.apply(frequency))
            })
            .collect();
        // Angles are products of f32 values as in transformers; f64 products would drift from it
        // at large positions.
        let angle = |position: usize, frequency: f64| f64::from(position as f32 * frequency as f32);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |&f| angle(p, f)));
        let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        Self { cos, sin, half, elsewhere: OnceLock::new() }
    }

    /// Positions that the table covers.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Cosines and sines as tensors `[positions, rotary_dim / 2]`, cached for the first device
    /// that asks, since a run uses one.
    pub(super) fn on(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let tensor = |values: &[f32]| Tensor::from_slice(values, (self.positions(), self.half), device);
        if let Some(kept) = self.elsewhere.get().filter(|kept| kept.0.device().same_device(device)) {
            return Ok(kept.clone());
        }
        let both = (tensor(&self.cos)?, tensor(&self.sin)?);
        // Another thread may have been first; then these are used once.
        let _ = self.elsewhere.set(both.clone());
        Ok(both)
    }

    fn row(&self, position: u32) -> (&[f32], &[f32]) {
        let from = position as usize * self.half;
        (&self.cos[from..from + self.half], &self.sin[from..from + self.half])
    }
}

impl RopeScaling {
    /// The scaled frequency: long wavelengths divided by the factor, short ones kept, a ramp
    /// between them.
    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let context = self.original_max_position as f64;
        let (longest, shortest) = (context / self.low_freq_factor, context / self.high_freq_factor);
        if wavelength < shortest {
            frequency
        } else if wavelength > longest {
            frequency / self.factor
        } else {
            let kept = (context / wavelength - self.low_freq_factor)
                / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - kept) * frequency / self.factor + kept * frequency
        }
    }
}

struct Rotary {
    table: Arc<RotaryTable>,
    positions: Arc<[u32]>,
    eps: f32,
}

/// Rotates the first `rotary_dim` dimensions of heads `[batch, seq, heads, head_dim]` by their
/// positions (`[batch * seq]`), after an RMS norm per head with `norm` (`[head_dim]` and epsilon)
/// if there is one.
///
/// # Errors
/// Shapes that do not agree, positions beyond the table, operands of different types or devices.
pub fn rotary(
    x: &Tensor,
    norm: Option<(&Tensor, f64)>,
    table: &Arc<RotaryTable>,
    positions: &Arc<[u32]>,
) -> Result<Tensor> {
    let (batch, seq, _, width) = x.dims4()?;
    if batch * seq != positions.len() || width < 2 * table.half {
        candle_core::bail!(
            "rotary: heads {:?} with {} positions and a table for {} dimensions",
            x.shape(),
            positions.len(),
            2 * table.half
        );
    }
    if let Some(&beyond) = positions.iter().find(|&&p| p as usize >= table.positions()) {
        candle_core::bail!("rotary: position {beyond}, the table ends at {}", table.positions());
    }
    if composite::is_needed(x) {
        return composite::rotary(x, norm, table, positions);
    }
    let op = Rotary { table: table.clone(), positions: positions.clone(), eps: 0.0 };
    let x = x.contiguous()?;
    match norm {
        Some((weight, eps)) => x.apply_op2(weight, Rotary { eps: eps as f32, ..op }),
        None => x.apply_op1(op),
    }
}

impl Rotary {
    /// Runs `f` on every head of every token: (table row, output, input heads); in parallel over
    /// tokens.
    fn forward(&self, x: &[f32], dims: &[usize], weight: Option<&[f32]>) -> Vec<f32> {
        let (heads, width) = (dims[2], dims[3]);
        let token = heads * width;
        let mut y = vec![0.0; x.len()];
        let task = token * ROWS_PER_TASK;
        let positions = self.positions.par_chunks(ROWS_PER_TASK);
        y.par_chunks_mut(task).zip(x.par_chunks(task)).zip(positions).for_each(|((y, x), positions)| {
            let tokens = y.chunks_exact_mut(token).zip(x.chunks_exact(token)).zip(positions);
            for ((y, x), &position) in tokens {
                let (cos, sin) = self.table.row(position);
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    match weight {
                        Some(weight) => {
                            let r = inverse_rms(x, self.eps);
                            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                                *y = x * r * w;
                            }
                        }
                        None => y.copy_from_slice(x),
                    }
                    turn(y, cos, sin, 1.0);
                }
            }
        });
        y
    }

    /// Gradients of x and of the norm's weight (all zero without a norm).
    fn backward(
        &self,
        x: &[f32],
        grad: &[f32],
        dims: &[usize],
        weight: Option<&[f32]>,
    ) -> (Vec<f32>, Vec<f32>) {
        let (heads, width) = (dims[2], dims[3]);
        let token = heads * width;
        let mut dx = vec![0.0; x.len()];
        let task = token * ROWS_PER_TASK;
        let inputs =
            x.par_chunks(task).zip(grad.par_chunks(task)).zip(self.positions.par_chunks(ROWS_PER_TASK));
        let parts: Vec<Vec<f32>> = dx
            .par_chunks_mut(task)
            .zip(inputs)
            .map(|(dx, ((x, grad), positions))| {
                let mut dw = vec![0.0; width];
                let mut turned = vec![0.0; width];
                let inputs = x.chunks_exact(token).zip(grad.chunks_exact(token)).zip(positions);
                for (dx, ((x, grad), &position)) in dx.chunks_exact_mut(token).zip(inputs) {
                    let (cos, sin) = self.table.row(position);
                    let heads = x.chunks_exact(width).zip(grad.chunks_exact(width));
                    for (dx, (x, grad)) in dx.chunks_exact_mut(width).zip(heads) {
                        turned.copy_from_slice(grad);
                        turn(&mut turned, cos, sin, -1.0);
                        match weight {
                            Some(weight) => row_gradient(x, weight, &turned, self.eps, dx, &mut dw),
                            None => dx.copy_from_slice(&turned),
                        }
                    }
                }
                dw
            })
            .collect();
        (dx, ordered_sum(parts, width))
    }
}

/// Rotates one head in place: dimension i is paired with i + rotary_dim / 2. `sign` -1 rotates
/// back.
#[inline]
fn turn(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let s = s * sign;
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(floats(x, layout, "rotary")?, layout.dims(), None);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (dx, _) =
            with_floats([x, &grad], "rotary", |[v, grad]| Ok(self.backward(v, grad, x.dims(), None)))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

impl CustomOp2 for Rotary {
    fn name(&self) -> &'static str {
        "norm-rotary"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let weight = floats(weight, weight_layout, "norm-rotary")?;
        if x_layout.dims().last() != Some(&weight.len()) {
            candle_core::bail!("norm-rotary: heads {:?}, weight of {}", x_layout.shape(), weight.len());
        }
        let y = self.forward(floats(x, x_layout, "norm-rotary")?, x_layout.dims(), Some(weight));
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
        let (dx, dw) = with_floats([x, weight, &grad], "norm-rotary", |[v, weight, grad]| {
            Ok(self.backward(v, grad, x.dims(), Some(weight)))
        })?;
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(dw, weight.shape(), device)?),
        ))
    }
}
