//! Softmax attention with rotary positions: grouped heads, and per head a norm, a window, a cap or
//! a gate where the architecture has one.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::layers::{BlockWeights, Linear, Norm};
use crate::model::DecoderConfig;
use crate::model::features::AttentionBias;
use crate::model::ops::{RotaryTable, Scoring, attention, rotary, sigmoid_gate};
use crate::model::spec::{AttentionSpec, NormAt};
use crate::model::taps::{Context, Point, Projection, Taps};

#[derive(Debug, Clone)]
pub(super) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    output_gate: bool,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scoring: Scoring,
    rotary: Arc<RotaryTable>,
}

impl Attention {
    pub(super) fn new(
        config: &DecoderConfig,
        spec: &AttentionSpec,
        weights: BlockWeights,
        rotary: Arc<RotaryTable>,
    ) -> Result<Self> {
        let linear = |projection, bias| weights.linear(projection, bias);
        let norm = |at| {
            let norm = || weights.norm(at, config.features.norm, config.rms_eps);
            spec.qk_norm.then(norm).transpose()
        };
        Ok(Self {
            query: linear(Projection::Query, spec.bias != AttentionBias::None)?,
            key: linear(Projection::Key, spec.bias != AttentionBias::None)?,
            value: linear(Projection::Value, spec.bias != AttentionBias::None)?,
            output: linear(Projection::Output, spec.bias == AttentionBias::All)?,
            query_norm: norm(NormAt::Query)?,
            key_norm: norm(NormAt::Key)?,
            output_gate: spec.output_gate,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            scoring: Scoring {
                scale: 1.0 / (spec.query_scalar as f32).sqrt(),
                cap: spec.cap.map(|cap| cap as f32),
                window: spec.window,
            },
            rotary,
        })
    }

    /// `[B, S, D]` of the normalised residual stream `[B, S, D]`.
    pub(super) fn forward(&self, at: Context, x: &Tensor, taps: &mut dyn Taps) -> Result<Tensor> {
        let &Self { heads, kv_heads, head_dim, .. } = self;
        let (batch, seq, _) = x.dims3()?;
        let mut project = |projection, weights: &Linear| taps.project(projection, at, x, weights.forward(x)?);
        let q = project(Projection::Query, &self.query)?;
        let k = project(Projection::Key, &self.key)?.reshape((batch, seq, kv_heads, head_dim))?;
        let v = project(Projection::Value, &self.value)?.reshape((batch, seq, kv_heads, head_dim))?;
        let (q, gate) = if self.output_gate {
            // Each head's query is followed by its gate.
            let both = q.reshape((batch, seq, heads, 2 * head_dim))?;
            (both.narrow(3, 0, head_dim)?.contiguous()?, Some(both.narrow(3, head_dim, head_dim)?))
        } else {
            (q.reshape((batch, seq, heads, head_dim))?, None)
        };
        let turn = |x: &Tensor, norm: &Option<Norm>| {
            let factor = norm.as_ref().map(Norm::factor).transpose()?;
            let norm = factor.as_ref().zip(norm.as_ref().map(Norm::eps));
            rotary(x, norm, &self.rotary, at.layout().positions())
        };
        let (q, k) = (turn(&q, &self.query_norm)?, turn(&k, &self.key_norm)?);
        taps.attend(at, &q, &k, self.scoring)?;
        let mut context = attention(&q, &k, &v, self.scoring, at.layout())?;
        if let Some(gate) = gate {
            context = sigmoid_gate(&gate, &context)?;
        }
        let context = taps.tap(Point::AttentionContext, at, context)?;
        let context = context.reshape((batch, seq, heads * head_dim))?;
        taps.project(Projection::Output, at, &context, self.output.forward(&context)?)
    }
}
