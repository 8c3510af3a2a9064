//! What a decoder of the Llama family looks like: the numbers of a Hugging Face `config.json`, validated.

use serde::{Deserialize, Serialize};

/// Architectures with a llama.cpp counterpart of the same graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `LlamaForCausalLM`; llama.cpp `llama` (rotary pairs interleaved in its files).
    Llama,
    /// `Qwen3ForCausalLM`; llama.cpp `qwen3`: RMS norm on each head of q and k before rotation.
    Qwen3,
}

/// Shape and constants of a decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
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
    /// Width F of the SwiGLU intermediate.
    pub ffn: usize,
    /// Epsilon of every RMS norm.
    pub rms_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama-3 frequency scaling, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head shares the embedding matrix.
    pub tied: bool,
    /// Positions that the model was trained for.
    pub max_position: usize,
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

impl DecoderConfig {
    /// Whether q and k are normalised per head before rotation.
    pub fn qk_norm(&self) -> bool {
        self.family == Family::Qwen3
    }

    /// Names (Hugging Face) and shapes of all parameters, in their fixed order: embedding, blocks, final norm, head.
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.hidden_size, self.ffn);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: Vec<usize>| {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            };
            add("input_layernorm", vec![d]);
            add("self_attn.q_proj", vec![q, d]);
            add("self_attn.k_proj", vec![kv, d]);
            add("self_attn.v_proj", vec![kv, d]);
            add("self_attn.o_proj", vec![d, q]);
            if self.qk_norm() {
                add("self_attn.q_norm", vec![self.head_dim]);
                add("self_attn.k_norm", vec![self.head_dim]);
            }
            add("post_attention_layernorm", vec![d]);
            add("mlp.gate_proj", vec![f, d]);
            add("mlp.up_proj", vec![f, d]);
            add("mlp.down_proj", vec![d, f]);
        }
        shapes.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tied {
            shapes.push(("lm_head.weight".to_owned(), vec![self.vocab_size, d]));
        }
        shapes
    }

    /// Number of parameters (a tied head counts once).
    pub fn parameter_count(&self) -> u64 {
        self.parameter_shapes().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }
}
