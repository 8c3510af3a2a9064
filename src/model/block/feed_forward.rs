//! The feed-forward part: two projections up, a gated product, one projection down.

use candle_core::{Result, Tensor};

use super::layers::{BlockWeights, Linear};
use crate::model::features::Activation;
use crate::model::ops::{geglu, swiglu};
use crate::model::spec::FeedForwardSpec;
use crate::model::taps::{Context, Point, Projection, Taps};

#[derive(Debug, Clone)]
pub(super) struct FeedForward {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl FeedForward {
    pub(super) fn new(spec: FeedForwardSpec, weights: BlockWeights) -> Result<Self> {
        let linear = |projection| weights.linear(projection, spec.bias);
        Ok(Self {
            gate: linear(Projection::Gate)?,
            up: linear(Projection::Up)?,
            down: linear(Projection::Down)?,
            activation: spec.activation,
        })
    }

    /// `[B, S, D]` of the normalised residual stream `[B, S, D]`.
    pub(super) fn forward(&self, at: Context, x: &Tensor, taps: &mut dyn Taps) -> Result<Tensor> {
        let gate = taps.project(Projection::Gate, at, x, self.gate.forward(x)?)?;
        let up = taps.project(Projection::Up, at, x, self.up.forward(x)?)?;
        let inner = match self.activation {
            Activation::Silu => swiglu(&gate, &up)?,
            Activation::GeluTanh => geglu(&gate, &up)?,
        };
        let inner = taps.tap(Point::FfnIntermediate, at, inner)?;
        taps.project(Projection::Down, at, &inner, self.down.forward(&inner)?)
    }
}
