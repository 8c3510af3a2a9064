//! The gated delta rule in tensor operations: the chunks of all documents at once, with Candle's
//! own gradients. The formulas and symbols are those of `delta_rule/chunk.rs`.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{document_starts, f32, inside};
use crate::model::features::DeltaNetShape;
use crate::model::layout::BatchLayout;
use crate::model::ops::delta_rule::EPS;

/// Tokens in a chunk; a power of two, because the triangles are inverted by halves.
const CHUNK: usize = 64;

/// See [`super::super::delta_rule`], which has checked the operands.
pub(in super::super) fn delta_rule(
    mixed: &Tensor,
    decay: &Tensor,
    strength: &Tensor,
    shape: DeltaNetShape,
    layout: &BatchLayout,
) -> Result<Tensor> {
    let DeltaNetShape { key_heads, value_heads, key_dim, value_dim, .. } = shape;
    let (batch, seq, _) = mixed.dims3()?;
    let chunks = seq.div_ceil(CHUNK);
    let device = mixed.device();
    // Four dimensions, because Candle refuses products of more on a GPU.
    let all = batch * value_heads;
    // `[B, S, H W]` to `[B H, N, C, W]`, padded with zeros after the last token.
    let chunked = |x: &Tensor, heads: usize, width: usize| -> Result<Tensor> {
        let x = f32(x)?.pad_with_zeros(1, 0, chunks * CHUNK - seq)?;
        let x = x.reshape((batch, chunks, CHUNK, heads, width))?.permute((0, 3, 1, 2, 4))?;
        x.contiguous()?.reshape((batch * heads, chunks, CHUNK, width))
    };
    let keys = key_heads * key_dim;
    // Each key head serves a group of value heads.
    let shared = |from: usize| -> Result<Tensor> {
        let x = unit(&chunked(&mixed.narrow(2, from, keys)?, key_heads, key_dim)?)?.unsqueeze(1)?;
        let spread = (batch * key_heads, value_heads / key_heads, chunks, CHUNK, key_dim);
        x.broadcast_as(spread)?.contiguous()?.reshape((all, chunks, CHUNK, key_dim))
    };
    let q = (shared(0)? / (key_dim as f64).sqrt())?;
    let k = shared(keys)?;
    let v = chunked(&mixed.narrow(2, 2 * keys, shape.values())?, value_heads, value_dim)?;
    let b = chunked(strength, value_heads, 1)?; // [B H, N, C, 1]
    let known = Documents::new(layout, value_heads, chunks, device)?;
    let sums = chunked(decay, value_heads, 1)?.cumsum(2)?; // G
    let last = sums.narrow(2, CHUNK - 1, 1)?; // G_n, [B H, N, 1, 1]
    let kept = (sums.exp()? * known.continues)?; // exp(G)
    let d = sums.broadcast_sub(&sums.t()?)?.broadcast_mul(&known.lower)?;
    let d = (d.exp()? * known.together)?; // D
    let to_end = (last.broadcast_sub(&sums)?.exp()? * known.reaches)?;
    let carried = (last.exp()? * known.carries)?;
    let a = (k.matmul(&k.t()?)?.broadcast_mul(&b)? * &d)?.broadcast_mul(&known.strictly)?;
    let p = (q.matmul(&k.t()?)? * d)?;
    let solve = inverse(&a)?;
    // Everything that doesn't depend on the state is computed for all chunks at once: X =
    // from_values - from_state S.
    let from_values = solve.matmul(&v.broadcast_mul(&b)?)?;
    let from_state = solve.matmul(&k.broadcast_mul(&(kept.clone() * b)?)?)?;
    let asking = q.broadcast_mul(&kept)?;
    let telling = k.broadcast_mul(&to_end)?;

    let mut state = Tensor::zeros((all, key_dim, value_dim), DType::F32, device)?;
    let mut reads = Vec::with_capacity(chunks);
    for at in 0..chunks {
        let of = |x: &Tensor| x.narrow(1, at, 1)?.squeeze(1)?.contiguous();
        let written = (of(&from_values)? - of(&from_state)?.matmul(&state)?)?;
        reads.push((of(&asking)?.matmul(&state)? + of(&p)?.matmul(&written)?)?);
        state = (state.broadcast_mul(&of(&carried)?)? + of(&telling)?.t()?.matmul(&written)?)?;
    }
    let reads = Tensor::cat(&reads, 1)?.reshape((batch, value_heads, chunks * CHUNK, value_dim))?;
    let inside = inside(&document_starts(layout), layout, device)?.unsqueeze(3)?;
    reads.transpose(1, 2)?.narrow(1, 0, seq)?.broadcast_mul(&inside)?.to_dtype(mixed.dtype())
}

/// The vectors of the last dimension, normalised to length 1.
fn unit(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + f64::from(EPS))?.sqrt()?)
}

/// `(1 + A)^-1` of strictly lower triangular A `[..., n, n]`, n a power of two: inverts both
/// halves at once; below them the inverse has `-(lower half) M (upper half)`. A series in A would
/// lose all digits where keys repeat.
fn inverse(a: &Tensor) -> Result<Tensor> {
    let n = a.dim(D::Minus1)?;
    let dims = a.dims().to_vec();
    let a = a.reshape(((), n, n))?;
    if n == 1 {
        return a.ones_like()?.reshape(dims);
    }
    let half = n / 2;
    let quarter = |row: usize, column: usize| a.narrow(1, row, half)?.narrow(2, column, half);
    let both = inverse(&Tensor::stack(&[quarter(0, 0)?, quarter(half, half)?], 0)?)?;
    let (upper, lower) = (both.get(0)?, both.get(1)?);
    let below = lower.matmul(&quarter(half, 0)?.contiguous()?)?.matmul(&upper)?.neg()?;
    let right = Tensor::cat(&[upper.zeros_like()?, lower], 1)?;
    Tensor::cat(&[Tensor::cat(&[upper, below], 1)?, right], 2)?.reshape(dims)
}

/// Which tokens interact, as factors 0 and 1 in f32. All but the triangles are `[B H, N, ..]`.
struct Documents {
    /// On or below the diagonal, `[C, C]`; above it exponents would be positive.
    lower: Tensor,
    /// Below the diagonal, `[C, C]`.
    strictly: Tensor,
    /// Pairs of one document, on or below the diagonal, `[.., C, C]`.
    together: Tensor,
    /// The document began before the chunk, `[.., C, 1]`.
    continues: Tensor,
    /// The document includes the end of the chunk, `[.., C, 1]`.
    reaches: Tensor,
    /// A single document spans the chunk and began before it, `[.., 1, 1]`.
    carries: Tensor,
}

impl Documents {
    fn new(layout: &BatchLayout, heads: usize, chunks: usize, device: &Device) -> Result<Self> {
        let (batch, seq) = (layout.batch(), layout.seq());
        // The documents of a row are identified by their first token; padding counts as one more.
        let starts = document_starts(layout);
        let mut ids = Vec::with_capacity(batch * chunks * CHUNK);
        let mut before = Vec::with_capacity(batch * chunks);
        for row in starts.chunks_exact(seq) {
            let mut padded = row.to_vec();
            padded.resize(chunks * CHUNK, seq as u32);
            // Nothing precedes the first chunk: a number that no document has.
            before.extend(
                (0..chunks).map(|n| n.checked_sub(1).map_or(u32::MAX, |n| padded[n * CHUNK + CHUNK - 1])),
            );
            ids.extend(padded);
        }
        let of_heads = |ids: Vec<u32>, tokens: usize| {
            let ids = Tensor::from_vec(ids, (batch, 1, chunks, tokens, 1), device)?;
            let ids = ids.broadcast_as((batch, heads, chunks, tokens, 1))?.contiguous()?;
            ids.reshape((batch * heads, chunks, tokens, 1))
        };
        let (ids, before) = (of_heads(ids, CHUNK)?, of_heads(before, 1)?);
        let last = ids.narrow(2, CHUNK - 1, 1)?;
        let triangle = |least: usize| {
            let values = (0..CHUNK * CHUNK)
                .map(|at| f32::from(u8::from(at / CHUNK >= at % CHUNK + least)))
                .collect::<Vec<_>>();
            Tensor::from_vec(values, (CHUNK, CHUNK), device)
        };
        let lower = triangle(0)?;
        Ok(Self {
            together: f32(&ids.broadcast_eq(&ids.t()?)?)?.broadcast_mul(&lower)?,
            continues: f32(&ids.broadcast_eq(&before)?)?,
            reaches: f32(&ids.broadcast_eq(&last)?)?,
            carries: f32(&last.broadcast_eq(&before)?)?,
            strictly: triangle(1)?,
            lower,
        })
    }
}
