//! The one forward pass, shared by every architecture, with taps.

use candle_core::{DType, Device, Result, Tensor};

use super::block::{Block, Norm, RotaryTables, Weights};
use super::ops::{CrossEntropy, linear, linear_cross_entropy};
use super::taps::{Context, Pass, Point, Taps};
use super::{DecoderConfig, Parameters, Role};

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
        for parameter in config.parameters() {
            parameters.fitting(&parameter)?;
        }
        let weights = Weights::new(parameters, frozen);
        let mut tables = RotaryTables::new(config.max_position);
        let blocks = config
            .blocks
            .iter()
            .enumerate()
            .map(|(layer, spec)| Block::new(&config, spec, weights.of_block(layer), &mut tables))
            .collect::<Result<_>>()?;
        let embedding = weights.get(Role::Embedding)?;
        let head = if config.tied { embedding.clone() } else { weights.get(Role::Head)? };
        let norm = weights.norm(Role::FinalNorm, config.features.norm, config.rms_eps)?;
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

    /// Normalised hidden states `[B, S, D]` of token ids `[B, S]` (u32): [`Self::embed`], each
    /// [`Self::block`], [`Self::finish`].
    ///
    /// # Errors
    /// Ids whose shape is not the layout's, ids outside the vocabulary, positions beyond `max_position`, errors of taps.
    pub fn forward<'a>(
        &self,
        ids: &Tensor,
        pass: impl Into<Pass<'a>>,
        taps: &mut dyn Taps,
    ) -> Result<Tensor> {
        let pass = pass.into();
        let mut x = self.embed(ids)?;
        for layer in 0..self.blocks.len() {
            x = self.block(layer, x, pass, taps)?;
        }
        self.finish(&x, pass, taps)
    }

    /// The residual stream `[B, S, D]` that enters the first block, of token ids `[B, S]` (u32).
    ///
    /// # Errors
    /// Ids outside the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        embed(&self.config, &self.embedding, ids, self.dtype)
    }

    /// The residual stream `[B, S, D]` that leaves a block, of the one that enters it: blocks can
    /// be run one at a time.
    ///
    /// # Errors
    /// No such block; shapes that are not the layout's, positions beyond `max_position`, errors of
    /// taps.
    pub fn block<'a>(
        &self,
        layer: usize,
        x: Tensor,
        pass: impl Into<Pass<'a>>,
        taps: &mut dyn Taps,
    ) -> Result<Tensor> {
        let Some(block) = self.blocks.get(layer) else {
            candle_core::bail!("block {layer} of a decoder that has {} (the first is 0)", self.blocks.len());
        };
        block.forward(x, pass.into(), taps, self.recompute)
    }

    /// Normalised hidden states `[B, S, D]` of the residual stream that leaves the last block.
    ///
    /// # Errors
    /// Another width than D, errors of taps.
    pub fn finish<'a>(&self, x: &Tensor, pass: impl Into<Pass<'a>>, taps: &mut dyn Taps) -> Result<Tensor> {
        let at = Context { layer: self.blocks.len(), pass: pass.into() };
        taps.tap(Point::FinalNorm, at, self.norm.forward(x)?)
    }

    /// Logits `[..., V]` of hidden states `[..., D]`.
    ///
    /// # Errors
    /// Another width than D.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        output(&self.config, hidden, &self.head)
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

/// The residual stream `[B, S, D]` that enters the first block, of token ids `[B, S]` (u32).
pub(super) fn embed(
    config: &DecoderConfig,
    embedding: &Tensor,
    ids: &Tensor,
    dtype: DType,
) -> Result<Tensor> {
    let (batch, seq) = ids.dims2()?;
    let embedded = embedding.index_select(&ids.flatten_all()?, 0)?.to_dtype(dtype)?;
    let x = embedded.reshape((batch, seq, config.hidden_size))?;
    if config.features.scaled_embedding { x * (config.hidden_size as f64).sqrt() } else { Ok(x) }
}

/// Logits `[..., V]` of hidden states `[..., D]`.
pub(super) fn output(config: &DecoderConfig, hidden: &Tensor, head: &Tensor) -> Result<Tensor> {
    let logits = linear(hidden, head)?;
    match config.features.logit_cap {
        None => Ok(logits),
        Some(cap) => (logits / cap)?.tanh()? * cap,
    }
}
