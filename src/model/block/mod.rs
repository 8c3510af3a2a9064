//! One decoder block: a mixer between tokens, a feed-forward part, and the norms around them.

mod attention;
mod delta_net;
mod feed_forward;
mod layers;
mod recompute;
mod rotary_tables;

use candle_core::{Result, Tensor};

use attention::Attention;
use delta_net::DeltaNet;
use feed_forward::FeedForward;
use layers::BlockWeights;
pub(super) use layers::{Norm, Weights};
pub(super) use rotary_tables::RotaryTables;

use super::DecoderConfig;
use super::spec::{BlockSpec, Mixer, NormAt};
use super::taps::{Context, Pass, Point, Taps};

/// A block over shared parameters.
#[derive(Debug, Clone)]
pub(super) struct Block {
    layer: usize,
    mixer_norm: Norm,
    mixer: MixerPart,
    after_mixer: Option<Norm>,
    ffn_norm: Norm,
    ffn: FeedForward,
    after_ffn: Option<Norm>,
    /// Those of its weights that collect gradients.
    variables: Vec<Tensor>,
}

#[derive(Debug, Clone)]
enum MixerPart {
    Attention(Attention),
    DeltaNet(DeltaNet),
}

impl Block {
    /// The block of a layer; `weights` are those under `model.layers.N.`.
    pub(super) fn new(
        config: &DecoderConfig,
        spec: &BlockSpec,
        weights: BlockWeights,
        tables: &mut RotaryTables,
    ) -> Result<Self> {
        let norm = |at: NormAt| weights.norm(at, config.features.norm, config.rms_eps);
        let mixer = match &spec.mixer {
            Mixer::Attention(attention) => {
                let rotary = tables.of(attention);
                MixerPart::Attention(Attention::new(config, attention, weights, rotary)?)
            }
            Mixer::DeltaNet(shape) => MixerPart::DeltaNet(DeltaNet::new(config, *shape, weights)?),
        };
        let after = |at: NormAt| spec.post_norms.then(|| norm(at)).transpose();
        Ok(Self {
            layer: weights.layer(),
            mixer_norm: norm(NormAt::BeforeMixer)?,
            mixer,
            after_mixer: after(NormAt::AfterMixer)?,
            ffn_norm: norm(NormAt::BeforeFfn)?,
            ffn: FeedForward::new(spec.ffn, weights)?,
            after_ffn: after(NormAt::AfterFfn)?,
            variables: weights.variables(),
        })
    }

    /// The residual stream `[B, S, D]` that leaves the block. With `recompute`, only its input is
    /// kept for the backward pass, if the taps can be repeated (see [`Taps::recompute`]).
    pub(super) fn forward(
        &self,
        x: Tensor,
        pass: Pass,
        taps: &mut dyn Taps,
        recompute: bool,
    ) -> Result<Tensor> {
        let at = Context { layer: self.layer, pass };
        let x = taps.tap(Point::Residual, at, x)?;
        let repeated = if recompute { taps.recompute(self.layer) } else { None };
        let x = match repeated {
            Some(repeated) => recompute::inner(self, x, pass, taps, repeated)?,
            None => self.inner(x, pass, taps)?,
        };
        taps.tap(Point::BlockOutput, at, x)
    }

    /// What lies between the taps of the residual stream.
    fn inner(&self, x: Tensor, pass: Pass, taps: &mut dyn Taps) -> Result<Tensor> {
        let at = Context { layer: self.layer, pass };
        let normed = taps.tap(Point::AttentionNorm, at, self.mixer_norm.forward(&x)?)?;
        let mixed = match &self.mixer {
            MixerPart::Attention(attention) => attention.forward(at, &normed, taps)?,
            MixerPart::DeltaNet(delta_net) => delta_net.forward(at, &normed, taps)?,
        };
        let mixed = Norm::after(self.after_mixer.as_ref(), mixed)?;
        let x = (x + taps.tap(Point::AttentionOutput, at, mixed)?)?;
        let normed = taps.tap(Point::FfnNorm, at, self.ffn_norm.forward(&x)?)?;
        let fed = self.ffn.forward(at, &normed, taps)?;
        let fed = Norm::after(self.after_ffn.as_ref(), fed)?;
        x + taps.tap(Point::FfnOutput, at, fed)?
    }
}
