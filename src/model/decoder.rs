//! The one forward pass: decoders of the Llama family, with taps.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::layout::BatchLayout;
use super::ops::{RotaryTable, attention, linear, rms_norm, rotary, swiglu};
use super::taps::{Point, Projection, Taps};
use super::{DecoderConfig, Parameters};

/// A decoder over shared parameters: changing a [`Parameters`] variable in place changes the decoder.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: DecoderConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Tensor,
    rotary: Arc<RotaryTable>,
}

#[derive(Debug, Clone)]
struct Block {
    attention_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    query_norm: Option<Tensor>,
    key_norm: Option<Tensor>,
    ffn_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Decoder {
    /// Builds a decoder on parameters named and shaped as in [`DecoderConfig::parameter_shapes`].
    ///
    /// # Errors
    /// A parameter that is missing or has another shape.
    pub fn new(config: DecoderConfig, parameters: &Parameters) -> Result<Self> {
        for (name, shape) in config.parameter_shapes() {
            let found = parameters.get(&name)?.dims();
            if found != shape {
                candle_core::bail!("parameter {name} has shape {found:?}, expected {shape:?}");
            }
        }
        let get = |name: &str| -> Result<Tensor> { Ok(parameters.get(name)?.as_tensor().clone()) };
        let blocks = (0..config.layers)
            .map(|layer| {
                let get = |name: &str| get(&format!("model.layers.{layer}.{name}.weight"));
                let norm = |name: &str| config.qk_norm().then(|| get(name)).transpose();
                Ok(Block {
                    attention_norm: get("input_layernorm")?,
                    query: get("self_attn.q_proj")?,
                    key: get("self_attn.k_proj")?,
                    value: get("self_attn.v_proj")?,
                    output: get("self_attn.o_proj")?,
                    query_norm: norm("self_attn.q_norm")?,
                    key_norm: norm("self_attn.k_norm")?,
                    ffn_norm: get("post_attention_layernorm")?,
                    gate: get("mlp.gate_proj")?,
                    up: get("mlp.up_proj")?,
                    down: get("mlp.down_proj")?,
                })
            })
            .collect::<Result<_>>()?;
        let embedding = get("model.embed_tokens.weight")?;
        let head = if config.tied { embedding.clone() } else { get("lm_head.weight")? };
        let rotary = RotaryTable::new(
            config.max_position,
            config.head_dim,
            config.rope_theta,
            config.rope_scaling.as_ref(),
        );
        Ok(Self {
            norm: get("model.norm.weight")?,
            rotary: Arc::new(rotary),
            config,
            embedding,
            blocks,
            head,
        })
    }

    /// Shape and constants.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The output matrix `[V, D]` (the embedding where tied).
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// Normalised hidden states `[B, S, D]` of token ids `[B, S]` (u32).
    ///
    /// # Errors
    /// Ids whose shape is not the layout's, ids outside the vocabulary, positions beyond `max_position`, errors of taps.
    pub fn forward(&self, ids: &Tensor, layout: &BatchLayout, taps: &mut dyn Taps) -> Result<Tensor> {
        let (batch, seq) = ids.dims2()?;
        let embedded = self.embedding.index_select(&ids.flatten_all()?, 0)?;
        let mut x = embedded.reshape((batch, seq, self.config.hidden_size))?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = taps.tap(Point::Residual, layer, x)?;
            let mixed = self.attend(block, layer, &x, layout, taps)?;
            x = (x + taps.tap(Point::AttentionOutput, layer, mixed)?)?;
            let fed = self.feed(block, layer, &x, taps)?;
            x = (x + taps.tap(Point::FfnOutput, layer, fed)?)?;
            x = taps.tap(Point::BlockOutput, layer, x)?;
        }
        let x = rms_norm(&x, &self.norm, self.config.rms_eps)?;
        taps.tap(Point::FinalNorm, self.config.layers, x)
    }

    /// Logits `[..., V]` of hidden states `[..., D]`.
    ///
    /// # Errors
    /// Another width than D.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        linear(hidden, &self.head)
    }

    fn attend(
        &self,
        block: &Block,
        layer: usize,
        x: &Tensor,
        layout: &BatchLayout,
        taps: &mut dyn Taps,
    ) -> Result<Tensor> {
        let DecoderConfig { heads, kv_heads, head_dim, rms_eps, .. } = self.config;
        let (batch, seq, _) = x.dims3()?;
        let x = taps.tap(Point::AttentionNorm, layer, rms_norm(x, &block.attention_norm, rms_eps)?)?;
        let mut project = |projection, weight: &Tensor, heads: usize| {
            taps.project(projection, layer, &x, linear(&x, weight)?)?.reshape((batch, seq, heads, head_dim))
        };
        let q = project(Projection::Query, &block.query, heads)?;
        let k = project(Projection::Key, &block.key, kv_heads)?;
        let v = project(Projection::Value, &block.value, kv_heads)?;
        let turn = |x: &Tensor, norm: &Option<Tensor>| {
            rotary(x, norm.as_ref().map(|weight| (weight, rms_eps)), &self.rotary, layout.positions())
        };
        let (q, k) = (turn(&q, &block.query_norm)?, turn(&k, &block.key_norm)?);
        let context = taps.tap(Point::AttentionContext, layer, attention(&q, &k, &v, layout)?)?;
        let context = context.reshape((batch, seq, heads * head_dim))?;
        let output = linear(&context, &block.output)?;
        taps.project(Projection::Output, layer, &context, output)
    }

    fn feed(&self, block: &Block, layer: usize, x: &Tensor, taps: &mut dyn Taps) -> Result<Tensor> {
        let x = rms_norm(x, &block.ffn_norm, self.config.rms_eps)?;
        let x = taps.tap(Point::FfnNorm, layer, x)?;
        let gate = taps.project(Projection::Gate, layer, &x, linear(&x, &block.gate)?)?;
        let up = taps.project(Projection::Up, layer, &x, linear(&x, &block.up)?)?;
        let inner = taps.tap(Point::FfnIntermediate, layer, swiglu(&gate, &up)?)?;
        let output = linear(&inner, &block.down)?;
        taps.project(Projection::Down, layer, &inner, output)
    }
}
