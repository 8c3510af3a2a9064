//! Gated products, sums of adapters and decays: each a line of tensor operations, with Candle's
//! own gradients.

use candle_core::{Result, Tensor};
use candle_nn::ops::sigmoid;

use super::super::linear;
use super::f32;

/// See [`super::super::swiglu`].
pub(in super::super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// See [`super::super::geglu`].
pub(in super::super) fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.gelu()? * up
}

/// See [`super::super::sigmoid_gate`].
pub(in super::super) fn sigmoid_gate(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    sigmoid(&gate.contiguous()?)? * up
}

/// See [`super::super::silu`].
pub(in super::super) fn silu(x: &Tensor) -> Result<Tensor> {
    x.silu()
}

/// See [`super::super::low_rank`].
pub(in super::super) fn low_rank(y: &Tensor, inner: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    y + (linear(inner, b)? * scale)?
}

/// See [`super::super::gated_update`]. In f32, because the gradient of the gate is a sum over all
/// values.
pub(in super::super) fn gated_update(
    h: &Tensor,
    update: &Tensor,
    bias: &Tensor,
    share: f64,
) -> Result<Tensor> {
    let gate = (sigmoid(&f32(bias)?.flatten_all()?)? * share)?;
    (f32(h)? + f32(update)?.broadcast_mul(&gate)?)?.to_dtype(h.dtype())
}

/// See [`super::super::decay`]. Stays f32, because cumulative sums are taken of it.
pub(in super::super) fn decay(time: &Tensor, rate: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let x = f32(time)?.broadcast_add(&f32(bias)?)?;
    // ln(1 + exp(x)) without overflow.
    let softplus = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    softplus.broadcast_mul(&f32(rate)?.exp()?.neg()?)
}
