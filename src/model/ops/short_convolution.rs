//! The short causal convolution before a DeltaNet: a depthwise convolution over the last few
//! tokens inside a document, then SiLU.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::lanes::{self, sigmoid};
use super::rms_norm::ordered_sum;
use super::{composite, floats, with_floats};
use crate::model::layout::{BatchLayout, Document};

struct ShortConvolution {
    documents: Arc<[Document]>,
    seq: usize,
}

/// `silu(sum over j of weight[c, j] x[t - kernel + 1 + j, c])` for x `[B, S, C]` and weight
/// `[C, 1, kernel]` (the layout of a depthwise kernel in torch). Tokens before a document count as
/// zero, and padding gives zero.
///
/// # Errors
/// Shapes that do not agree with each other or the layout, operands of different types or devices.
pub fn short_convolution(x: &Tensor, weight: &Tensor, layout: &BatchLayout) -> Result<Tensor> {
    let (batch, seq, channels) = x.dims3()?;
    let (expected, one, kernel) = weight.dims3()?;
    if (batch, seq) != (layout.batch(), layout.seq()) || channels != expected || one != 1 || kernel == 0 {
        let (x, weight) = (x.shape(), weight.shape());
        candle_core::bail!("short convolution: x {x:?}, weight {weight:?}, layout [{batch}, {seq}]");
    }
    if composite::is_needed(x) {
        return composite::short_convolution(x, weight, layout);
    }
    let op = ShortConvolution { documents: layout.documents().clone(), seq };
    x.contiguous()?.apply_op2(&weight.contiguous()?, op)
}

/// The kernel `[C, kernel]` transposed to `[kernel, C]`, a row per tap.
fn transposed(weight: &[f32], channels: usize) -> Vec<f32> {
    let kernel = weight.len() / channels;
    (0..kernel).flat_map(|tap| (0..channels).map(move |c| weight[c * kernel + tap])).collect()
}

/// The token that tap `tap` of a kernel of `kernel` taps sees at token `at`, if it is in the
/// document.
fn seen(at: usize, tap: usize, kernel: usize) -> Option<usize> {
    (at + tap + 1).checked_sub(kernel)
}

/// The convolution of one document `[len, C]`, before its SiLU.
fn convolve(x: &[f32], taps: &[f32], channels: usize) -> Vec<f32> {
    let kernel = taps.len() / channels;
    let mut y = vec![0.0; x.len()];
    for (at, y) in y.chunks_exact_mut(channels).enumerate() {
        for (tap, weights) in taps.chunks_exact(channels).enumerate() {
            let Some(from) = seen(at, tap, kernel) else { continue };
            let x = &x[from * channels..][..channels];
            for ((y, w), x) in y.iter_mut().zip(weights).zip(x) {
                *y = lanes::fma(*w, *x, *y);
            }
        }
    }
    y
}

/// Gradients of one document's x `[len, C]` and of the taps `[kernel, C]`.
fn gradients(x: &[f32], taps: &[f32], grad: &[f32], channels: usize) -> (Vec<f32>, Vec<f32>) {
    let kernel = taps.len() / channels;
    let mut inner = convolve(x, taps, channels);
    for (u, grad) in inner.iter_mut().zip(grad) {
        let s = sigmoid(*u);
        *u = grad * s * (1.0 + *u * (1.0 - s));
    }
    let (mut dx, mut d_taps) = (vec![0.0; x.len()], vec![0.0; taps.len()]);
    for (at, grad) in inner.chunks_exact(channels).enumerate() {
        for tap in 0..kernel {
            let Some(from) = seen(at, tap, kernel) else { continue };
            let (x, dx) = (&x[from * channels..][..channels], &mut dx[from * channels..][..channels]);
            let (weights, dw) =
                (&taps[tap * channels..][..channels], &mut d_taps[tap * channels..][..channels]);
            for ((((dx, dw), w), x), g) in dx.iter_mut().zip(dw).zip(weights).zip(x).zip(grad) {
                *dx = lanes::fma(*w, *g, *dx);
                *dw = lanes::fma(*x, *g, *dw);
            }
        }
    }
    (dx, d_taps)
}

impl ShortConvolution {
    /// The range of each document's values in `[B, S, C]`.
    fn places(&self, channels: usize) -> Vec<std::ops::Range<usize>> {
        let place = |document: &Document| {
            let from = (document.row * self.seq + document.start) * channels;
            from..from + document.len * channels
        };
        self.documents.iter().map(place).collect()
    }
}

impl CustomOp2 for ShortConvolution {
    fn name(&self) -> &'static str {
        "short-convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (floats(x, x_layout, self.name())?, floats(weight, weight_layout, self.name())?);
        let channels = weight_layout.dims()[0];
        let taps = transposed(weight, channels);
        let places = self.places(channels);
        let one = |place: &std::ops::Range<usize>| {
            let mut y = convolve(&x[place.clone()], &taps, channels);
            for u in &mut y {
                *u *= sigmoid(*u);
            }
            y
        };
        let parts: Vec<Vec<f32>> = places.par_iter().map(one).collect();
        let mut y = vec![0.0; x.len()];
        for (place, part) in places.into_iter().zip(parts) {
            y[place].copy_from_slice(&part);
        }
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
        let channels = weight.dim(0)?;
        let places = self.places(channels);
        let (dx, dw) = with_floats([x, weight, &grad], self.name(), |[x, weight, grad]| {
            let taps = transposed(weight, channels);
            let one = |place: &std::ops::Range<usize>| {
                gradients(&x[place.clone()], &taps, &grad[place.clone()], channels)
            };
            let parts: Vec<(Vec<f32>, Vec<f32>)> = places.par_iter().map(one).collect();
            let mut dx = vec![0.0; x.len()];
            let mut d_taps = Vec::with_capacity(parts.len());
            for (place, (part, taps)) in places.iter().zip(parts) {
                dx[place.clone()].copy_from_slice(&part);
                d_taps.push(taps);
            }
            // Back to `[C, kernel]`.
            let kernel = taps.len() / channels;
            Ok((dx, transposed(&ordered_sum(d_taps, taps.len()), kernel)))
        })?;
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(dw, weight.shape(), device)?),
        ))
    }
}
