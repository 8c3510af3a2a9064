//! RMS norm and rotary positions in tensor operations.

use candle_core::{D, Result, Tensor};

use super::super::RotaryTable;
use super::super::custom_grad::{custom_grad1, custom_grad2};
use super::f32;

/// See [`super::super::rms_norm`].
pub(in super::super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (operand, factor) = (x.detach(), f32(&weight.detach())?);
    // x in f32, and 1 / sqrt(mean(x^2) + eps): recomputed for the gradient, so that only x is
    // kept.
    let parts = move |x: &Tensor| -> Result<(Tensor, Tensor)> {
        let x = f32(x)?;
        let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
        Ok((x, inverse))
    };
    let (wide, inverse) = parts(&operand)?;
    let y = wide.broadcast_mul(&inverse)?.broadcast_mul(&factor)?.to_dtype(x.dtype())?;
    let (kind, of_weight) = (weight.dtype(), weight.track_op());
    custom_grad2("composite-rms-norm", x, weight, y, move |grad| {
        let (x, inverse) = parts(&operand)?;
        let (grad, unit) = (f32(grad)?, x.broadcast_mul(&inverse)?);
        // With u = g w and n = x / rms: dx = (u - n mean(u n)) / rms, dw = sum of g n over rows.
        let u = grad.broadcast_mul(&factor)?;
        let along = (&u * &unit)?.mean_keepdim(D::Minus1)?;
        let dx = (u - unit.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?.to_dtype(operand.dtype())?;
        let dw = || (grad * unit)?.reshape(((), factor.elem_count()))?.sum(0)?.to_dtype(kind);
        Ok([Some(dx), of_weight.then(dw).transpose()?])
    })
}

/// See [`super::super::rotary`], which has checked the operands.
pub(in super::super) fn rotary(
    x: &Tensor,
    norm: Option<(&Tensor, f64)>,
    table: &RotaryTable,
    positions: &[u32],
) -> Result<Tensor> {
    let x = match norm {
        Some((weight, eps)) => &rms_norm(x, weight, eps)?,
        None => x,
    };
    let (batch, seq, ..) = x.dims4()?;
    let (cos, sin) = table.on(x.device())?;
    let positions = Tensor::new(positions, x.device())?;
    let of_tokens = |table: &Tensor| table.index_select(&positions, 0)?.reshape((batch, seq, 1, ()));
    let (cos, sin) = (of_tokens(&cos)?, of_tokens(&sin)?); // [B, S, 1, rotary_dim / 2]
    let y = turn(&x.detach(), &cos, &sin)?;
    custom_grad1("composite-rotary", x, y, move |grad| Ok([Some(turn(grad, &cos, &sin.neg()?)?)]))
}

/// Dimension i of each head is paired with i + rotary_dim / 2; dimensions beyond both stay.
fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, width) = (cos.dim(3)?, x.dim(3)?);
    let wide = f32(x)?;
    let (a, b) = (wide.narrow(3, 0, half)?, wide.narrow(3, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    let rest = wide.narrow(3, 2 * half, width - 2 * half)?;
    let parts = if width > 2 * half { vec![first, second, rest] } else { vec![first, second] };
    Tensor::cat(&parts, 3)?.to_dtype(x.dtype())
}
