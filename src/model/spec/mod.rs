//! What a decoder is, block by block. Blocks of one decoder may differ in everything but the width
//! of the residual stream.

mod config;
mod difference;
mod parameters;
mod role;
mod uniform;

use serde::{Deserialize, Serialize};

use crate::model::features::{Activation, AttentionBias, DeltaNetShape};
pub use config::DecoderConfig;
pub use difference::{Difference, first_difference};
pub use parameters::ParameterSpec;
pub use role::{Axis, FelixTensor, LoraSide, NormAt, Part, Role};
pub use uniform::Uniform;

/// One decoder block: a mixer between tokens, then a feed-forward part, each after a norm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// How it moves information between tokens.
    pub mixer: Mixer,
    /// The feed-forward part.
    pub ffn: FeedForwardSpec,
    /// Whether what a part adds to the residual stream is normalised too.
    pub post_norms: bool,
}

impl BlockSpec {
    /// Its attention; none for a `DeltaNet` block.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match &self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::DeltaNet(_) => None,
        }
    }

    /// As [`Self::attention`], to be changed.
    pub fn attention_mut(&mut self) -> Option<&mut AttentionSpec> {
        match &mut self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::DeltaNet(_) => None,
        }
    }

    /// Sizes of a `DeltaNet` block.
    pub fn delta_net(&self) -> Option<DeltaNetShape> {
        match self.mixer {
            Mixer::Attention(_) => None,
            Mixer::DeltaNet(shape) => Some(shape),
        }
    }
}

/// How a block moves information between tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixer {
    /// Softmax attention.
    Attention(AttentionSpec),
    /// Gated DeltaNet (Yang et al. 2024): a matrix-valued state, updated by the delta rule.
    DeltaNet(DeltaNetShape),
}

/// Softmax attention with grouped heads and rotary positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Tokens that can be seen, a token itself included; `None` is all.
    pub window: Option<usize>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama-3 scaling of these, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Dimensions of each head that are rotated, the first ones; even.
    pub rotary_dim: usize,
    /// Which projections add a bias.
    pub bias: AttentionBias,
    /// Whether q and k are normalised per head before rotation.
    pub qk_norm: bool,
    /// Whether the context is multiplied by a sigmoid gate, which the query projection gives
    /// together with each head.
    pub output_gate: bool,
    /// Scores are divided by the square root of this: the width of a head, but for some models.
    pub query_scalar: f64,
    /// Soft cap c of scores: `c tanh(score / c)`.
    pub cap: Option<f64>,
}

/// Llama-3's piecewise scaling of rotary frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Wavelengths above `original_max_position / low_freq_factor` are divided in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position / high_freq_factor` are left alone.
    pub high_freq_factor: f64,
    /// Context of the original training.
    pub original_max_position: usize,
}

/// The feed-forward part: `down(activation(gate x) * up x)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FeedForwardSpec {
    /// Width F of the intermediate.
    pub width: usize,
    /// Nonlinearity.
    pub activation: Activation,
    /// Whether its projections add a bias.
    pub bias: bool,
}
