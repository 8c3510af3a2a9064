//! `[model]` and `[base]`: the model that is trained.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::{DecoderConfig, Family};

/// `[model]`: the decoder without its vocabulary, which follows from the tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// Architecture.
    pub family: Family,
    /// Width D of the residual stream.
    pub hidden_size: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the SwiGLU intermediate.
    pub ffn: usize,
    /// Number of positions that the model supports.
    pub max_position: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Epsilon of the norms.
    #[serde(default = "default_rms_eps")]
    pub rms_eps: f64,
    /// Whether the head shares the embedding.
    #[serde(default = "yes")]
    pub tied: bool,
}

fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_rms_eps() -> f64 {
    1e-6
}
fn yes() -> bool {
    true
}

impl ModelRecipe {
    /// The decoder for a vocabulary of this size.
    pub fn decoder_config(&self, vocab_size: usize) -> DecoderConfig {
        DecoderConfig {
            family: self.family,
            vocab_size,
            hidden_size: self.hidden_size,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            rms_eps: self.rms_eps,
            rope_theta: self.rope_theta,
            rope_scaling: None,
            tied: self.tied,
            max_position: self.max_position,
            features: self.family.features(self.layers, self.heads, self.head_dim),
        }
    }
}

/// `[base]`: a model to start from, and how to check that it was read correctly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseRecipe {
    /// A GGUF file (F32, F16, BF16 or Q8_0) or a Hugging Face folder.
    pub path: PathBuf,
    /// A text whose loss is measured before the first step. The default is generated encodings for
    /// a post trained by this program, and a paragraph of English for every other model.
    pub reference: Option<PathBuf>,
    /// Loss per token (nats) above which the run doesn't start; by default six tenths of a uniform
    /// guess, `0.6 ln V`.
    pub reference_bound: Option<f64>,
}
