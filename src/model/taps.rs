//! Taps: the named points of the forward pass where a caller may read a tensor or put another in its place.

use candle_core::{Result, Tensor};

/// A point of the forward pass. Shapes: B batch, S seq, D hidden size, H heads, F intermediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// The residual stream that enters a block, `[B, S, D]`.
    Residual,
    /// Output of the norm before attention, `[B, S, D]`.
    AttentionNorm,
    /// Attention context of every head, before the output projection, `[B, S, H, head_dim]`.
    AttentionContext,
    /// What attention adds to the residual stream, `[B, S, D]`.
    AttentionOutput,
    /// Output of the norm before the feed-forward part, `[B, S, D]`.
    FfnNorm,
    /// SwiGLU intermediate, `[B, S, F]`.
    FfnIntermediate,
    /// What the feed-forward part adds to the residual stream, `[B, S, D]`.
    FfnOutput,
    /// The residual stream that leaves a block, `[B, S, D]`.
    BlockOutput,
    /// Output of the last norm (its layer is the number of layers), `[B, S, D]`.
    FinalNorm,
}

/// A weight matrix of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// `self_attn.q_proj`
    Query,
    /// `self_attn.k_proj`
    Key,
    /// `self_attn.v_proj`
    Value,
    /// `self_attn.o_proj`
    Output,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

/// What a caller does at the points; each method leaves the forward pass as it is unless overridden.
pub trait Taps {
    /// Sees the tensor at a point of a layer; what it returns goes on instead (same shape).
    fn tap(&mut self, _point: Point, _layer: usize, tensor: Tensor) -> Result<Tensor> {
        Ok(tensor)
    }

    /// Sees the input `[B, S, in]` and the output `[B, S, out]` of a weight matrix; what it returns goes on as the output.
    fn project(
        &mut self,
        _projection: Projection,
        _layer: usize,
        _input: &Tensor,
        output: Tensor,
    ) -> Result<Tensor> {
        Ok(output)
    }
}

/// Looks at nothing and changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTaps;

impl Taps for NoTaps {}
