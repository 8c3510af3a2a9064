//! Taps: named points of the forward pass where a caller may read a tensor or replace it.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::layout::BatchLayout;
use super::ops::Scoring;

/// A point of the forward pass. Shapes: B batch, S seq, D hidden size, H heads, F intermediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// The residual stream that enters a block, `[B, S, D]`.
    Residual,
    /// Output of the norm before attention or DeltaNet, `[B, S, D]`.
    AttentionNorm,
    /// Context of every head, gated where the architecture has a gate, before the output
    /// projection, `[B, S, H, head_dim]`; of a DeltaNet block `[B, S, value heads, value width]`.
    AttentionContext,
    /// What attention or DeltaNet adds to the residual stream, after its own norm if it has one,
    /// `[B, S, D]`.
    AttentionOutput,
    /// Output of the norm before the feed-forward part, `[B, S, D]`.
    FfnNorm,
    /// Gated product before the down projection, `[B, S, F]`.
    FfnIntermediate,
    /// What the feed-forward part adds to the residual stream, after its own norm if it has one,
    /// `[B, S, D]`.
    FfnOutput,
    /// The residual stream that leaves a block, `[B, S, D]`.
    BlockOutput,
    /// Output of the last norm (its layer is the number of layers), `[B, S, D]`.
    FinalNorm,
}

/// A weight matrix of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// `self_attn.q_proj`; with output gates, each head's query and gate
    Query,
    /// `self_attn.k_proj`
    Key,
    /// `self_attn.v_proj`
    Value,
    /// `self_attn.o_proj`
    Output,
    /// `linear_attn.in_proj_qkv`: q, k and v before the short convolution
    DeltaMixed,
    /// `linear_attn.in_proj_z`: gate of the output
    DeltaGate,
    /// `linear_attn.in_proj_b`: how much a token writes
    DeltaStrength,
    /// `linear_attn.in_proj_a`: how much a token forgets
    DeltaTime,
    /// `linear_attn.out_proj`
    DeltaOutput,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

/// What a caller does at the points. By default each method forwards to the taps before these, if
/// any, and changes nothing.
pub trait Taps {
    /// Taps that act before these; an overridden method has to call them itself.
    fn before(&mut self) -> Option<&mut dyn Taps> {
        None
    }

    /// Sees the tensor at a point of a layer and returns its replacement (same shape).
    fn tap(&mut self, point: Point, layer: usize, tensor: Tensor) -> Result<Tensor> {
        match self.before() {
            Some(before) => before.tap(point, layer, tensor),
            None => Ok(tensor),
        }
    }

    /// Sees the input `[B, S, in]` and the output `[B, S, out]` of a weight matrix and returns the
    /// new output.
    fn project(
        &mut self,
        projection: Projection,
        layer: usize,
        input: &Tensor,
        output: Tensor,
    ) -> Result<Tensor> {
        match self.before() {
            Some(before) => before.project(projection, layer, input, output),
            None => Ok(output),
        }
    }

    /// Sees the queries `[B, S, H, head_dim]` and keys `[B, S, H_kv, head_dim]` that attention
    /// compares, normed and rotated.
    fn attend(
        &mut self,
        layer: usize,
        query: &Tensor,
        key: &Tensor,
        scoring: Scoring,
        layout: &BatchLayout,
    ) -> Result<()> {
        match self.before() {
            Some(before) => before.attend(layer, query, key, scoring, layout),
            None => Ok(()),
        }
    }

    /// Taps that repeat what these do between [`Point::Residual`] and [`Point::BlockOutput`] of a
    /// layer, for a decoder that recomputes blocks in the backward pass. `None` keeps the block's
    /// activations instead: the right answer for taps that store what they see there.
    fn recompute(&self, _layer: usize) -> Option<Recompute> {
        None
    }
}

/// Taps that repeat others (see [`Taps::recompute`]).
#[derive(Clone)]
pub struct Recompute {
    /// Makes the taps.
    pub taps: Arc<dyn Fn() -> Box<dyn Taps> + Send + Sync>,
    /// Variables that they add to the layer.
    pub variables: Vec<Tensor>,
}

/// Taps that read and change nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTaps;

impl Taps for NoTaps {
    fn recompute(&self, _layer: usize) -> Option<Recompute> {
        Some(Recompute { taps: Arc::new(|| Box::new(NoTaps)), variables: vec![] })
    }
}
