//! The differences between decoder architectures, one field each. The forward pass reads these
//! fields and knows no family.

use serde::{Deserialize, Serialize};

/// Architectures that llama.cpp computes with the same graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `LlamaForCausalLM`; llama.cpp `llama` (rotary pairs interleaved in its files).
    Llama,
    /// `Qwen2ForCausalLM` (Qwen 2 and 2.5); llama.cpp `qwen2`: biases on q, k and v.
    Qwen2,
    /// `Qwen3ForCausalLM`; llama.cpp `qwen3`: RMS norm on each head of q and k before rotation.
    Qwen3,
    /// `Gemma2ForCausalLM`; llama.cpp `gemma2`: norms around each part, soft caps, alternating
    /// windows.
    Gemma2,
    /// `Qwen3_5ForCausalLM`; llama.cpp `qwen35`: Gated DeltaNet in most blocks, gated attention in
    /// the others.
    Qwen3_5,
}

/// What a norm multiplies by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormWeight {
    /// Its weight.
    Plain,
    /// One plus its weight, so that a weight of zero changes nothing.
    OnePlus,
}

/// Which projections of attention add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttentionBias {
    /// None.
    None,
    /// Query, key and value.
    QueryKeyValue,
    /// These and the output.
    All,
}

/// The nonlinearity of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU (`gelu_pytorch_tanh`).
    GeluTanh,
}

/// Sizes of the Gated DeltaNet blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaNetShape {
    /// Heads of q and k; divides `value_heads`.
    pub key_heads: usize,
    /// Heads of v, each with a state of its own.
    pub value_heads: usize,
    /// Width of a head of q and k.
    pub key_dim: usize,
    /// Width of a head of v.
    pub value_dim: usize,
    /// Tokens that the short convolution sees, including the token itself.
    pub kernel: usize,
}

impl DeltaNetShape {
    /// Width of all heads of v.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Channels of the short convolution: q, k and v concatenated.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.values()
    }
}

/// What sets an architecture apart outside its blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Features {
    /// What the norms of blocks and heads and the final norm multiply by.
    pub norm: NormWeight,
    /// Whether embeddings are multiplied by the square root of their width.
    pub scaled_embedding: bool,
    /// Sections of the rotary pairs for positions in time, height and width. Text has the same position in all three, so
    /// they change nothing here; files carry them.
    pub rotary_sections: Option<Vec<usize>>,
    /// Soft cap of logits.
    pub logit_cap: Option<f64>,
}

/// Window of Gemma 2, and the default that Qwen's configurations declare.
pub const DEFAULT_WINDOW: usize = 4096;

impl Family {
    /// All families.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma2, Self::Qwen3_5];

    /// The architecture's usual features; the numbers are those of its published models.
    pub fn features(self) -> Features {
        Features {
            norm: match self {
                Self::Llama | Self::Qwen2 | Self::Qwen3 => NormWeight::Plain,
                Self::Gemma2 | Self::Qwen3_5 => NormWeight::OnePlus,
            },
            scaled_embedding: self == Self::Gemma2,
            rotary_sections: None,
            logit_cap: (self == Self::Gemma2).then_some(30.0),
        }
    }
}
