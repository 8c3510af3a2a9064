//! Decoders as most are: one shape for all blocks, with the features that the architecture's
//! published models have.

use super::{AttentionSpec, BlockSpec, DecoderConfig, FeedForwardSpec, Mixer, RopeScaling};
use crate::model::features::{Activation, AttentionBias, DEFAULT_WINDOW, DeltaNetShape, Family};

/// Sizes of a decoder whose blocks are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Uniform {
    /// Architecture.
    pub family: Family,
    /// Vocabulary entries.
    pub vocab_size: usize,
    /// Width D of the residual stream.
    pub hidden_size: usize,
    /// Number L of decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width F of the feed-forward intermediate.
    pub ffn: usize,
    /// Epsilon of every RMS norm.
    pub rms_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama-3 scaling of these, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head shares the embedding matrix.
    pub tied: bool,
    /// Positions that the model was trained for.
    pub max_position: usize,
}

impl AttentionSpec {
    /// The architecture's attention over all tokens, with the numbers of its published models.
    pub fn usual(family: Family, heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            window: None,
            rope_theta: 10_000.0,
            rope_scaling: None,
            rotary_dim: match family {
                // A quarter of each head.
                Family::Qwen3_5 => (head_dim / 8).max(1) * 2,
                _ => head_dim,
            },
            bias: match family {
                Family::Qwen2 => AttentionBias::QueryKeyValue,
                _ => AttentionBias::None,
            },
            qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3_5),
            output_gate: family == Family::Qwen3_5,
            query_scalar: head_dim as f64,
            cap: (family == Family::Gemma2).then_some(50.0),
        }
    }
}

impl Uniform {
    /// The decoder; what can be changed of each block is in [`DecoderConfig::blocks`].
    pub fn config(&self) -> DecoderConfig {
        DecoderConfig {
            family: self.family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            blocks: (0..self.layers).map(|layer| self.block(layer)).collect(),
            rms_eps: self.rms_eps,
            tied: self.tied,
            max_position: self.max_position,
            features: self.family.features(),
        }
    }

    fn block(&self, layer: usize) -> BlockSpec {
        let recurrent = self.family == Family::Qwen3_5 && !(layer + 1).is_multiple_of(4);
        let mixer = if recurrent {
            Mixer::DeltaNet(self.delta_net())
        } else {
            let window = self.family == Family::Gemma2 && layer.is_multiple_of(2);
            Mixer::Attention(AttentionSpec { window: window.then_some(DEFAULT_WINDOW), ..self.attention() })
        };
        BlockSpec { mixer, ffn: self.feed_forward(), post_norms: self.family == Family::Gemma2 }
    }

    /// The architecture's attention over all tokens.
    pub fn attention(&self) -> AttentionSpec {
        AttentionSpec {
            rope_theta: self.rope_theta,
            rope_scaling: self.rope_scaling.clone(),
            ..AttentionSpec::usual(self.family, self.heads, self.kv_heads, self.head_dim)
        }
    }

    fn feed_forward(&self) -> FeedForwardSpec {
        let activation = match self.family {
            Family::Gemma2 => Activation::GeluTanh,
            _ => Activation::Silu,
        };
        FeedForwardSpec { width: self.ffn, activation, bias: false }
    }

    fn delta_net(&self) -> DeltaNetShape {
        DeltaNetShape {
            key_heads: self.heads,
            value_heads: self.heads,
            key_dim: self.head_dim,
            value_dim: self.head_dim,
            kernel: 4,
        }
    }

    /// A Llama for tests.
    #[cfg(test)]
    pub(crate) fn small() -> Self {
        Self {
            family: Family::Llama,
            vocab_size: 300,
            hidden_size: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 96,
            rms_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            tied: true,
            max_position: 512,
        }
    }
}
