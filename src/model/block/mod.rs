//! One decoder block: a mixer between tokens, a feed-forward part, and the norms around them.

mod attention;
mod delta_net;
mod feed_forward;
mod layers;
mod recompute;

use std::sync::Arc;

use candle_core::{Result, Tensor};

use attention::Attention;
use delta_net::DeltaNet;
use feed_forward::FeedForward;
pub(super) use layers::{Norm, Weights};

use super::DecoderConfig;
use super::features::Mixer;
use super::layout::BatchLayout;
use super::ops::RotaryTable;
use super::taps::{Point, Taps};

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
        layer: usize,
        weights: &Weights,
        rotary: &Arc<RotaryTable>,
    ) -> Result<Self> {
        let features = &config.features;
        let norm = |name: &str| weights.norm(name, features.norm, config.rms_eps);
        let mixer = match features.mixers[layer] {
            Mixer::Attention { window } => {
                MixerPart::Attention(Attention::new(config, window, weights, rotary)?)
            }
            Mixer::DeltaNet(shape) => MixerPart::DeltaNet(DeltaNet::new(config, shape, weights)?),
        };
        // With norms on both sides, Hugging Face's `post_attention_layernorm` is the one after
        // attention; without, it is the one before the feed-forward part.
        let (after_mixer, ffn_norm, after_ffn) = if features.post_norms {
            (
                Some(norm("post_attention_layernorm")?),
                norm("pre_feedforward_layernorm")?,
                Some(norm("post_feedforward_layernorm")?),
            )
        } else {
            (None, norm("post_attention_layernorm")?, None)
        };
        Ok(Self {
            layer,
            mixer_norm: norm("input_layernorm")?,
            mixer,
            after_mixer,
            ffn_norm,
            ffn: FeedForward::new(config, weights)?,
            after_ffn,
            variables: weights.variables(),
        })
    }

    /// The residual stream `[B, S, D]` that leaves the block. With `recompute`, only its input is
    /// kept for the backward pass, if the taps can be repeated (see [`Taps::recompute`]).
    pub(super) fn forward(
        &self,
        x: Tensor,
        layout: &BatchLayout,
        taps: &mut dyn Taps,
        recompute: bool,
    ) -> Result<Tensor> {
        let layer = self.layer;
        let x = taps.tap(Point::Residual, layer, x)?;
        let repeated = if recompute { taps.recompute(layer) } else { None };
        let x = match repeated {
            Some(repeated) => recompute::inner(self, x, layout, taps, repeated)?,
            None => self.inner(x, layout, taps)?,
        };
        taps.tap(Point::BlockOutput, layer, x)
    }

    /// The part between the taps on the residual stream.
    fn inner(&self, x: Tensor, layout: &BatchLayout, taps: &mut dyn Taps) -> Result<Tensor> {
        let layer = self.layer;
        let normed = taps.tap(Point::AttentionNorm, layer, self.mixer_norm.forward(&x)?)?;
        let mixed = match &self.mixer {
            MixerPart::Attention(attention) => attention.forward(layer, &normed, layout, taps)?,
            MixerPart::DeltaNet(delta_net) => delta_net.forward(layer, &normed, layout, taps)?,
        };
        let mixed = Norm::after(self.after_mixer.as_ref(), mixed)?;
        let x = (x + taps.tap(Point::AttentionOutput, layer, mixed)?)?;
        let normed = taps.tap(Point::FfnNorm, layer, self.ffn_norm.forward(&x)?)?;
        let fed = self.ffn.forward(layer, &normed, taps)?;
        let fed = Norm::after(self.after_ffn.as_ref(), fed)?;
        x + taps.tap(Point::FfnOutput, layer, fed)?
    }
}
