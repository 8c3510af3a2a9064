//! Attention in tensor operations, one block of queries at a time: only the scores of one block
//! exist, and the backward pass recomputes them.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::super::Scoring;
use super::super::custom_grad::custom_grad3;
use super::{document_starts, f32};
use crate::model::layout::BatchLayout;

/// Most scores that exist at a time (128 MiB); this bounds the queries of a block.
const MOST_SCORES: usize = 1 << 25;
/// The number of queries of a block is a multiple of this.
const STEP: usize = 64;
/// The score of a key that a query doesn't see: its exponential is 0 relative to any other.
const HIDDEN: f32 = -1e30;

/// See [`super::super::attention`], which has checked the operands.
pub(in super::super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scoring: Scoring,
    layout: &BatchLayout,
) -> Result<Tensor> {
    let (batch, seq, heads, _) = q.dims4()?;
    let queries = MOST_SCORES / (batch * heads * seq).max(1) / STEP * STEP;
    in_blocks(q, k, v, Blocks::new(scoring, layout, k.dim(2)?, queries.max(STEP)))
}

/// Attention in the given blocks.
pub(in super::super) fn in_blocks(q: &Tensor, k: &Tensor, v: &Tensor, blocks: Blocks) -> Result<Tensor> {
    let operands = [q, k, v].map(Tensor::detach);
    let context = blocks.forward(&operands)?;
    let kept = context.clone();
    custom_grad3("composite-attention", [q, k, v], context, move |grad| {
        Ok(blocks.backward(&operands, &kept, grad)?.map(Some))
    })
}

/// How a batch of attention is divided. Shapes: B batch, S seq, H heads, K key/value heads, G = H /
/// K, D head_dim.
pub(in super::super) struct Blocks {
    scoring: Scoring,
    batch: usize,
    seq: usize,
    kv_heads: usize,
    queries: usize,
    /// First key that each query sees, `[B, S]`; S for padding, which sees none.
    first: Vec<u32>,
}

/// Some queries of every row, with the keys that any of them sees.
struct Block {
    from: usize,
    len: usize,
    first_key: usize,
    /// Whether a query sees a key, `[B, 1, len, keys]`.
    visible: Tensor,
    /// Whether it sees any, f32, `[B, 1, len, 1]`.
    sees: Tensor,
}

impl Block {
    fn keys(&self) -> usize {
        self.from + self.len - self.first_key
    }
}

impl Blocks {
    pub(in super::super) fn new(
        scoring: Scoring,
        layout: &BatchLayout,
        kv_heads: usize,
        queries: usize,
    ) -> Self {
        let (batch, seq) = (layout.batch(), layout.seq());
        let mut first = document_starts(layout);
        if let Some(window) = scoring.window {
            for (at, first) in first.iter_mut().enumerate() {
                *first = (*first).max((at % seq + 1).saturating_sub(window) as u32);
            }
        }
        Self { scoring, batch, seq, kv_heads, queries, first }
    }

    /// `[B, S, H, D]` to `[B K, G, S, D]` in f32.
    fn by_head(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, seq, heads, width) = x.dims4()?;
        let kv_heads = self.kv_heads;
        let x = x.reshape((batch, seq, kv_heads, heads / kv_heads, width))?.permute((0, 2, 3, 1, 4))?;
        f32(&x.contiguous()?)?.reshape((batch * kv_heads, heads / kv_heads, seq, width))
    }

    /// Back from `[B K, G, S, D]`, in the type of `like`.
    fn by_token(&self, x: &Tensor, like: &Tensor) -> Result<Tensor> {
        let (_, group, seq, width) = x.dims4()?;
        let x = x.reshape((self.batch, self.kv_heads, group, seq, width))?.permute((0, 3, 1, 2, 4))?;
        x.to_dtype(like.dtype())?.contiguous()?.reshape(like.shape())
    }

    /// Queries times the scale, keys and values: `[B K, G, S, D]` and `[B K, S, D]`.
    fn arranged(&self, [q, k, v]: &[Tensor; 3]) -> Result<[Tensor; 3]> {
        let q = (self.by_head(q)? * f64::from(self.scoring.scale))?;
        Ok([q, self.by_head(k)?.squeeze(1)?, self.by_head(v)?.squeeze(1)?])
    }

    fn blocks(&self, device: &Device) -> Result<Vec<Block>> {
        let first = Tensor::from_slice(&self.first, (self.batch, 1, self.seq, 1), device)?;
        let block = |from: usize| {
            let len = self.queries.min(self.seq - from);
            let of_rows = self.first.chunks_exact(self.seq).flat_map(|row| &row[from..from + len]);
            let first_key = of_rows.copied().min().map_or(from, |first| from.min(first as usize));
            let keys = Tensor::arange(first_key as u32, (from + len) as u32, device)?;
            let at = Tensor::arange(from as u32, (from + len) as u32, device)?.reshape((1, 1, len, 1))?;
            let first = first.narrow(2, from, len)?;
            let before = at.broadcast_ge(&keys.reshape((1, 1, 1, ()))?)?;
            let inside = first.broadcast_le(&keys.reshape((1, 1, 1, ()))?)?;
            let visible = before.broadcast_mul(&inside)?;
            Ok(Block { from, len, first_key, visible, sees: f32(&first.broadcast_le(&at)?)? })
        };
        (0..self.seq).step_by(self.queries).map(block).collect()
    }

    /// A block's queries as the rows of one matrix for each head of keys, `[B K, G len, D]`.
    fn rows(x: &Tensor, block: &Block) -> Result<Tensor> {
        x.narrow(2, block.from, block.len)?.contiguous()?.flatten(1, 2)
    }

    /// `x` with 0 for queries that see nothing.
    fn seen(&self, x: &Tensor, block: &Block) -> Result<Tensor> {
        let (width, shape) = (x.dim(D::Minus1)?, x.shape());
        let x = x.reshape((self.batch, (), block.len, width))?;
        x.broadcast_mul(&block.sees)?.reshape(shape)
    }

    /// Probabilities of a block `[B K, G len, keys]` (uniform where a query sees nothing), and
    /// with a cap the slopes of its scores.
    fn probabilities(&self, q: &Tensor, k: &Tensor, block: &Block) -> Result<(Tensor, Option<Tensor>)> {
        let mut scores = q.matmul(&k.t()?)?;
        let mut slopes = None;
        if let Some(cap) = self.scoring.cap.map(f64::from) {
            let bent = (scores / cap)?.tanh()?;
            slopes = Some(bent.sqr()?.affine(-1.0, 1.0)?);
            scores = (bent * cap)?;
        }
        let shape = scores.shape().clone();
        let scores = scores.reshape((self.batch, (), block.len, block.keys()))?;
        let hidden = Tensor::new(HIDDEN, q.device())?.broadcast_as(scores.shape())?;
        let scores = block.visible.broadcast_as(scores.shape())?.where_cond(&scores, &hidden)?;
        Ok((softmax_last_dim(&scores)?.reshape(shape)?, slopes))
    }

    fn forward(&self, operands: &[Tensor; 3]) -> Result<Tensor> {
        let [q, k, v] = self.arranged(operands)?;
        let (pairs, group, _, width) = q.dims4()?;
        let mut parts = Vec::new();
        for block in self.blocks(q.device())? {
            let of_keys = |x: &Tensor| x.narrow(1, block.first_key, block.keys());
            let (weights, _) = self.probabilities(&Self::rows(&q, &block)?, &of_keys(&k)?, &block)?;
            let context = self.seen(&weights.matmul(&of_keys(&v)?)?, &block)?;
            parts.push(context.reshape((pairs, group, block.len, width))?);
        }
        self.by_token(&Tensor::cat(&parts, 2)?, &operands[0])
    }

    fn backward(&self, operands: &[Tensor; 3], context: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
        let [q, k, v] = self.arranged(operands)?;
        let (grad, context) = (self.by_head(grad)?, self.by_head(context)?);
        let (pairs, group, seq, width) = q.dims4()?;
        // The inner product of each context with its gradient, per query and head.
        let deltas = (&context * &grad)?.sum_keepdim(3)?;
        let (mut dq, mut dk, mut dv) = (vec![], k.zeros_like()?, v.zeros_like()?);
        for block in self.blocks(q.device())? {
            let of_keys = |x: &Tensor| x.narrow(1, block.first_key, block.keys());
            let (q, k, v) = (Self::rows(&q, &block)?, of_keys(&k)?, of_keys(&v)?);
            let (weights, slopes) = self.probabilities(&q, &k, &block)?;
            // A query that sees nothing has no gradient, so its uniform probabilities pass none
            // on.
            let grad = self.seen(&Self::rows(&grad, &block)?, &block)?;
            let deltas = self.seen(&Self::rows(&deltas, &block)?, &block)?;
            // dP = g V^T, dS = P (dP - g.o); under a cap c, times 1 - (S / c)^2
            let mut d_scores = (grad.matmul(&v.t()?)?.broadcast_sub(&deltas)? * &weights)?;
            if let Some(slopes) = slopes {
                d_scores = (d_scores * slopes)?;
            }
            let of_rows = d_scores.matmul(&k)?.reshape((pairs, group, block.len, width))?;
            dq.push((of_rows * f64::from(self.scoring.scale))?);
            let place =
                |part: Tensor| part.pad_with_zeros(1, block.first_key, seq - block.first_key - block.keys());
            dk = (dk + place(d_scores.t()?.matmul(&q)?)?)?;
            dv = (dv + place(weights.t()?.matmul(&grad)?)?)?;
        }
        let dq = self.by_token(&Tensor::cat(&dq, 2)?, &operands[0])?;
        let back = |x: &Tensor, like| self.by_token(&x.unsqueeze(1)?, like);
        Ok([dq, back(&dk, &operands[1])?, back(&dv, &operands[2])?])
    }
}
