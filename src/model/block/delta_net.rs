//! Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024): linear attention whose state decays by a gate
//! and is updated by the delta rule.

use candle_core::{Result, Tensor};

use super::layers::{Linear, Norm, Weights};
use crate::model::DecoderConfig;
use crate::model::features::{DeltaNetShape, NormWeight};
use crate::model::layout::BatchLayout;
use crate::model::ops::{decay, delta_rule, short_convolution, swiglu};
use crate::model::taps::{Point, Projection, Taps};

#[derive(Debug, Clone)]
pub(super) struct DeltaNet {
    shape: DeltaNetShape,
    mixed: Linear,
    gate: Linear,
    strength: Linear,
    time: Linear,
    output: Linear,
    convolution: Tensor,
    rate: Tensor,
    time_bias: Tensor,
    norm: Norm,
}

impl DeltaNet {
    pub(super) fn new(config: &DecoderConfig, shape: DeltaNetShape, weights: &Weights) -> Result<Self> {
        let get = |name: &str| weights.get(&format!("linear_attn.{name}"));
        let linear = |name: &str| weights.linear(&format!("linear_attn.{name}"), false);
        Ok(Self {
            shape,
            mixed: linear("in_proj_qkv")?,
            gate: linear("in_proj_z")?,
            strength: linear("in_proj_b")?,
            time: linear("in_proj_a")?,
            output: linear("out_proj")?,
            convolution: get("conv1d.weight")?,
            rate: get("A_log")?,
            time_bias: get("dt_bias")?,
            // In every architecture this norm multiplies by the weight itself, never by 1 +
            // weight.
            norm: weights.norm("linear_attn.norm", NormWeight::Plain, config.rms_eps)?,
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
        let DeltaNetShape { value_heads, value_dim, .. } = self.shape;
        let (batch, seq, _) = x.dims3()?;
        let mut project =
            |projection, weights: &Linear| taps.project(projection, layer, x, weights.forward(x)?);
        let mixed = project(Projection::DeltaMixed, &self.mixed)?;
        let gate = project(Projection::DeltaGate, &self.gate)?;
        let strength = project(Projection::DeltaStrength, &self.strength)?;
        let time = project(Projection::DeltaTime, &self.time)?;
        let mixed = short_convolution(&mixed, &self.convolution, layout)?;
        let strength = candle_nn::ops::sigmoid(&strength)?; // [B, S, value heads]
        let decay = decay(&time, &self.rate, &self.time_bias)?; // [B, S, value heads]
        let read = delta_rule(&mixed, &decay, &strength, self.shape, layout)?;
        let gate = gate.reshape((batch, seq, value_heads, value_dim))?;
        let context = swiglu(&gate, &self.norm.forward(&read)?)?;
        let context = taps.tap(Point::AttentionContext, layer, context)?;
        let context = context.reshape((batch, seq, value_heads * value_dim))?;
        taps.project(Projection::DeltaOutput, layer, &context, self.output.forward(&context)?)
    }
}
