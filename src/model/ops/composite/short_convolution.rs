//! The short causal convolution as a sum of shifted copies.

use candle_core::{Result, Tensor};

use super::{document_starts, f32, inside};
use crate::model::layout::BatchLayout;

/// See [`super::super::short_convolution`], which has checked the operands.
pub(in super::super) fn short_convolution(
    x: &Tensor,
    weight: &Tensor,
    layout: &BatchLayout,
) -> Result<Tensor> {
    let (batch, seq, channels) = x.dims3()?;
    let (kernel, device) = (weight.dim(2)?, x.device());
    let (wide, weight) = (f32(x)?, f32(weight)?);
    let tap = |at: usize| weight.narrow(2, at, 1)?.reshape((1, 1, channels));
    let mut sum = wide.broadcast_mul(&tap(kernel - 1)?)?;
    for back in 1..kernel.min(seq) {
        // A token sees an earlier one only inside its own document.
        let sees: Vec<f32> =
            layout.positions().iter().map(|&at| f32::from(u8::from(at as usize >= back))).collect();
        let sees = Tensor::from_vec(sees, (batch, seq, 1), device)?;
        let shifted = wide.narrow(1, 0, seq - back)?.pad_with_zeros(1, back, 0)?;
        sum = (sum + shifted.broadcast_mul(&sees)?.broadcast_mul(&tap(kernel - 1 - back)?)?)?;
    }
    let inside = inside(&document_starts(layout), layout, device)?;
    sum.silu()?.broadcast_mul(&inside)?.to_dtype(x.dtype())
}
