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

/// How a block moves information between tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mixer {
    /// Softmax attention over the last `window` tokens, including the token itself, or over all.
    Attention {
        /// Number of visible tokens; `None` is all.
        window: Option<usize>,
    },
    /// Gated DeltaNet (Yang et al. 2024): a matrix-valued state, updated by the delta rule.
    DeltaNet(DeltaNetShape),
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

/// The differences between architectures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // independent of each other: any combination is a decoder
pub struct Features {
    /// What the norms of blocks and heads and the final norm multiply by.
    pub norm: NormWeight,
    /// Whether the output of attention and of the feed-forward part is normalised too.
    pub post_norms: bool,
    /// Whether q and k are normalised per head before rotation.
    pub qk_norm: bool,
    /// Biases of attention.
    pub attention_bias: AttentionBias,
    /// Whether the feed-forward part has biases.
    pub ffn_bias: bool,
    /// The nonlinearity of the feed-forward part.
    pub activation: Activation,
    /// Whether the attention context is multiplied by a sigmoid gate, which the query projection
    /// computes along with each head.
    pub output_gate: bool,
    /// Whether embeddings are multiplied by the square root of their width.
    pub scaled_embedding: bool,
    /// Leading dimensions of each head that are rotated; even.
    pub rotary_dim: usize,
    /// Sections of the rotary pairs for positions in time, height and width. Text has the same
    /// position in all three, so they change nothing here, but files carry them.
    pub rotary_sections: Option<Vec<usize>>,
    /// Scores are divided by the square root of this: the width of a head in most models.
    pub query_scalar: f64,
    /// Soft cap c of scores: `c tanh(score / c)`.
    pub attention_cap: Option<f64>,
    /// Soft cap of logits.
    pub logit_cap: Option<f64>,
    /// One per block; all `DeltaNet` blocks have the same sizes.
    pub mixers: Vec<Mixer>,
}

impl Features {
    /// Sizes of the `DeltaNet` blocks, where there are any.
    pub fn delta_net(&self) -> Option<DeltaNetShape> {
        self.mixers.iter().find_map(|mixer| match mixer {
            Mixer::DeltaNet(shape) => Some(*shape),
            Mixer::Attention { .. } => None,
        })
    }

    /// Windows of the attention blocks that have one.
    pub fn windows(&self) -> impl Iterator<Item = usize> {
        self.mixers.iter().filter_map(|mixer| match mixer {
            Mixer::Attention { window } => *window,
            Mixer::DeltaNet(_) => None,
        })
    }
}

/// Window of Gemma 2, and the default that Qwen's configurations declare.
pub const DEFAULT_WINDOW: usize = 4096;

impl Family {
    /// All families.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma2, Self::Qwen3_5];

    /// The architecture's usual features for a decoder of this size; the numbers are those of its
    /// published models.
    pub fn features(self, layers: usize, heads: usize, head_dim: usize) -> Features {
        let llama = Features {
            norm: NormWeight::Plain,
            post_norms: false,
            qk_norm: false,
            attention_bias: AttentionBias::None,
            ffn_bias: false,
            activation: Activation::Silu,
            output_gate: false,
            scaled_embedding: false,
            rotary_dim: head_dim,
            rotary_sections: None,
            query_scalar: head_dim as f64,
            attention_cap: None,
            logit_cap: None,
            mixers: vec![Mixer::Attention { window: None }; layers],
        };
        match self {
            Self::Llama => llama,
            Self::Qwen2 => Features { attention_bias: AttentionBias::QueryKeyValue, ..llama },
            Self::Qwen3 => Features { qk_norm: true, ..llama },
            Self::Gemma2 => {
                let window = |layer: usize| layer.is_multiple_of(2).then_some(DEFAULT_WINDOW);
                Features {
                    norm: NormWeight::OnePlus,
                    post_norms: true,
                    activation: Activation::GeluTanh,
                    scaled_embedding: true,
                    attention_cap: Some(50.0),
                    logit_cap: Some(30.0),
                    mixers: (0..layers).map(|layer| Mixer::Attention { window: window(layer) }).collect(),
                    ..llama
                }
            }
            Self::Qwen3_5 => {
                let shape = DeltaNetShape {
                    key_heads: heads,
                    value_heads: heads,
                    key_dim: head_dim,
                    value_dim: head_dim,
                    kernel: 4,
                };
                let mixer = |layer: usize| match (layer + 1) % 4 {
                    0 => Mixer::Attention { window: None },
                    _ => Mixer::DeltaNet(shape),
                };
                Features {
                    norm: NormWeight::OnePlus,
                    qk_norm: true,
                    output_gate: true,
                    // A quarter of each head.
                    rotary_dim: (head_dim / 8).max(1) * 2,
                    mixers: (0..layers).map(mixer).collect(),
                    ..llama
                }
            }
        }
    }
}
