//! The one forward pass, shared by every architecture, with taps.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::block::{Block, Norm, Weights};
use super::layout::BatchLayout;
use super::ops::{CrossEntropy, RotaryTable, linear, linear_cross_entropy};
use super::taps::{Point, Taps};
use super::{DecoderConfig, Parameters};

/// A decoder over shared parameters: changing a [`Parameters`] variable in place changes the
/// decoder.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: DecoderConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    head: Tensor,
    recompute: bool,
    dtype: DType,
}

impl Decoder {
    /// Builds a decoder from parameters named and shaped as in
    /// [`DecoderConfig::parameter_shapes`].
    ///
    /// # Errors
    /// A parameter is missing or has the wrong shape; the numbers of mixers and layers differ.
    pub fn new(config: DecoderConfig, parameters: &Parameters) -> Result<Self> {
        Self::over(config, parameters, false)
    }

    /// The same decoder with parameters that collect no gradients, for training an adapter.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn frozen(config: DecoderConfig, parameters: &Parameters) -> Result<Self> {
        Self::over(config, parameters, true)
    }

    fn over(config: DecoderConfig, parameters: &Parameters, frozen: bool) -> Result<Self> {
        let mixers = config.features.mixers.len();
        if mixers != config.layers {
            candle_core::bail!("{mixers} mixers for a decoder of {} layers", config.layers);
        }
        for (name, shape) in config.parameter_shapes() {
            let found = parameters.get(&name)?.dims();
            if found != shape {
                candle_core::bail!("parameter {name} has shape {found:?}, expected {shape:?}");
            }
        }
        let rotary = Arc::new(RotaryTable::new(
            config.max_position,
            config.features.rotary_dim,
            config.rope_theta,
            config.rope_scaling.as_ref(),
        ));
        let blocks = (0..config.layers)
            .map(|layer| {
                let weights = Weights::new(parameters, format!("model.layers.{layer}."), frozen);
                Block::new(&config, layer, &weights, &rotary)
            })
            .collect::<Result<_>>()?;
        let weights = Weights::new(parameters, "", frozen);
        let embedding = weights.get("model.embed_tokens.weight")?;
        let head = if config.tied { embedding.clone() } else { weights.get("lm_head.weight")? };
        let norm = weights.norm("model.norm", config.features.norm, config.rms_eps)?;
        Ok(Self { config, embedding, blocks, norm, head, recompute: false, dtype: DType::F32 })
    }

    /// The same decoder with activation checkpointing: each block keeps only its input for the
    /// backward pass, which recomputes the rest one block at a time. The results are the same, bit
    /// for bit.
    #[must_use]
    pub fn recomputing(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }

    /// The same decoder with activations in f32 or bf16 (on a GPU at least twice as fast, on the
    /// CPU slow). Parameters may stay f32: they are cast where they are used, and their gradients
    /// are f32.
    #[must_use]
    pub fn computing_in(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// The device of its parameters; inputs must be on it too.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Shape and constants.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The output matrix `[V, D]` (the embedding if tied).
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// Normalised hidden states `[B, S, D]` of token ids `[B, S]` (u32).
    ///
    /// # Errors
    /// Ids of another shape than the layout, ids outside the vocabulary, positions beyond
    /// `max_position`, errors of taps.
    pub fn forward(&self, ids: &Tensor, layout: &BatchLayout, taps: &mut dyn Taps) -> Result<Tensor> {
        let (batch, seq) = ids.dims2()?;
        let embedded = self.embedding.index_select(&ids.flatten_all()?, 0)?.to_dtype(self.dtype)?;
        let mut x = embedded.reshape((batch, seq, self.config.hidden_size))?;
        if self.config.features.scaled_embedding {
            x = (x * (self.config.hidden_size as f64).sqrt())?;
        }
        for block in &self.blocks {
            x = block.forward(x, layout, taps, self.recompute)?;
        }
        taps.tap(Point::FinalNorm, self.config.layers, self.norm.forward(&x)?)
    }

    /// Logits `[..., V]` of hidden states `[..., D]`.
    ///
    /// # Errors
    /// Another width than D.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = linear(hidden, &self.head)?;
        match self.config.features.logit_cap {
            None => Ok(logits),
            Some(cap) => (logits / cap)?.tanh()? * cap,
        }
    }

    /// `scale` times the sum of the losses of hidden states `[rows, D]` at their target tokens,
    /// without logits of all rows in memory; a gradient only if asked for (see
    /// [`linear_cross_entropy`]).
    ///
    /// # Errors
    /// Another width than D, another number of targets than rows, a target outside the vocabulary.
    pub fn loss(
        &self,
        hidden: &Tensor,
        targets: Vec<u32>,
        scale: f32,
        with_gradient: bool,
    ) -> Result<CrossEntropy> {
        let cap = self.config.features.logit_cap.map(|cap| cap as f32);
        linear_cross_entropy(hidden, &self.head, targets, scale, cap, with_gradient)
    }
}
