//! Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024): linear attention whose state decays by a gate
//! and is updated by the delta rule.

use candle_core::{Result, Tensor};

use super::layers::{BlockWeights, Linear, Norm};
use crate::model::DecoderConfig;
use crate::model::features::{DeltaNetShape, NormWeight};
use crate::model::ops::{decay, delta_rule, short_convolution, swiglu};
use crate::model::spec::{NormAt, Part};
use crate::model::taps::{Context, Point, Projection, Taps};

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
    pub(super) fn new(config: &DecoderConfig, shape: DeltaNetShape, weights: BlockWeights) -> Result<Self> {
        let linear = |projection| weights.linear(projection, false);
        Ok(Self {
            shape,
            mixed: linear(Projection::DeltaMixed)?,
            gate: linear(Projection::DeltaGate)?,
            strength: linear(Projection::DeltaStrength)?,
            time: linear(Projection::DeltaTime)?,
            output: linear(Projection::DeltaOutput)?,
            convolution: weights.get(Part::Convolution)?,
            rate: weights.get(Part::DecayRate)?,
            time_bias: weights.get(Part::TimeBias)?,
            // The one norm that multiplies by its weight as it is, in every architecture.
            norm: weights.norm(NormAt::DeltaRead, NormWeight::Plain, config.rms_eps)?,
        })
    }

    /// `[B, S, D]` of the normalised residual stream `[B, S, D]`.
    pub(super) fn forward(&self, at: Context, x: &Tensor, taps: &mut dyn Taps) -> Result<Tensor> {
        let DeltaNetShape { value_heads, value_dim, .. } = self.shape;
        let (batch, seq, _) = x.dims3()?;
        let mut project = |projection, weights: &Linear| taps.project(projection, at, x, weights.forward(x)?);
        let mixed = project(Projection::DeltaMixed, &self.mixed)?;
        let gate = project(Projection::DeltaGate, &self.gate)?;
        let strength = project(Projection::DeltaStrength, &self.strength)?;
        let time = project(Projection::DeltaTime, &self.time)?;
        let mixed = short_convolution(&mixed, &self.convolution, at.layout())?;
        let strength = candle_nn::ops::sigmoid(&strength)?; // [B, S, value heads]
        let decay = decay(&time, &self.rate, &self.time_bias)?; // [B, S, value heads]
        let read = delta_rule(&mixed, &decay, &strength, self.shape, at.layout())?;
        let gate = gate.reshape((batch, seq, value_heads, value_dim))?;
        let context = swiglu(&gate, &self.norm.forward(&read)?)?;
        let context = taps.tap(Point::AttentionContext, at, context)?;
        let context = context.reshape((batch, seq, value_heads * value_dim))?;
        taps.project(Projection::DeltaOutput, at, &context, self.output.forward(&context)?)
    }
}
