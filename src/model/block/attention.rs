//! Softmax attention with rotary positions: grouped heads, and per head a norm, a window, a cap or
//! a gate where the architecture has one.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::layers::{Linear, Norm, Weights};
use crate::model::DecoderConfig;
use crate::model::features::AttentionBias;
use crate::model::layout::BatchLayout;
use crate::model::ops::{RotaryTable, Scoring, attention, rotary, sigmoid_gate};
use crate::model::taps::{Point, Projection, Taps};

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
        window: Option<usize>,
        weights: &Weights,
        rotary: &Arc<RotaryTable>,
    ) -> Result<Self> {
        let features = &config.features;
        let bias = features.attention_bias;
        let linear = |name: &str, bias| weights.linear(&format!("self_attn.{name}"), bias);
        let norm = |name: &str| {
            let norm = || weights.norm(&format!("self_attn.{name}"), features.norm, config.rms_eps);
            features.qk_norm.then(norm).transpose()
        };
        Ok(Self {
            query: linear("q_proj", bias != AttentionBias::None)?,
            key: linear("k_proj", bias != AttentionBias::None)?,
            value: linear("v_proj", bias != AttentionBias::None)?,
            output: linear("o_proj", bias == AttentionBias::All)?,
            query_norm: norm("q_norm")?,
            key_norm: norm("k_norm")?,
            output_gate: features.output_gate,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scoring: Scoring {
                scale: 1.0 / (features.query_scalar as f32).sqrt(),
                cap: features.attention_cap.map(|cap| cap as f32),
                window,
            },
            rotary: rotary.clone(),
        })
    }

    /// `[B, S, D]` of the normalised residual stream `[B, S, D]`.
    pub(super) fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        layout: &BatchLayout,
        taps: &mut dyn Taps,
    ) -> Result<Tensor> {
        let &Self { heads, kv_heads, head_dim, .. } = self;
        let (batch, seq, _) = x.dims3()?;
        let mut project =
            |projection, weights: &Linear| taps.project(projection, layer, x, weights.forward(x)?);
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
            rotary(x, norm, &self.rotary, layout.positions())
        };
        let (q, k) = (turn(&q, &self.query_norm)?, turn(&k, &self.key_norm)?);
        taps.attend(layer, &q, &k, self.scoring, layout)?;
        let mut context = attention(&q, &k, &v, self.scoring, layout)?;
        if let Some(gate) = gate {
            context = sigmoid_gate(&gate, &context)?;
        }
        let context = taps.tap(Point::AttentionContext, layer, context)?;
        let context = context.reshape((batch, seq, heads * head_dim))?;
        taps.project(Projection::Output, layer, &context, self.output.forward(&context)?)
    }
}
