//! The configuration of a decoder: the validated numbers of a Hugging Face `config.json` and the
//! parameters that follow from them.

use serde::{Deserialize, Serialize};

use super::features::{AttentionBias, DeltaNetShape, Family, Features, Mixer};

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
    /// Width F of the feed-forward intermediate.
    pub ffn: usize,
    /// Epsilon of every RMS norm.
    pub rms_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama-3 frequency scaling, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head shares the embedding matrix.
    pub tied: bool,
    /// Number of positions that the model was trained for.
    pub max_position: usize,
    /// What distinguishes its architecture.
    pub features: Features,
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
    /// Names (Hugging Face) and shapes of all parameters, in their fixed order: embedding, blocks,
    /// final norm, head.
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.hidden_size;
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for (layer, &mixer) in self.features.mixers.iter().enumerate() {
            let mut add = |name: &str, shape: Vec<usize>| {
                shapes.push((format!("model.layers.{layer}.{name}"), shape));
            };
            add("input_layernorm.weight", vec![d]);
            match mixer {
                Mixer::Attention { .. } => self.attention_shapes(&mut add),
                Mixer::DeltaNet(shape) => self.delta_net_shapes(shape, &mut add),
            }
            add("post_attention_layernorm.weight", vec![d]);
            if self.features.post_norms {
                add("pre_feedforward_layernorm.weight", vec![d]);
            }
            for (name, outputs, inputs) in
                [("gate_proj", self.ffn, d), ("up_proj", self.ffn, d), ("down_proj", d, self.ffn)]
            {
                add(&format!("mlp.{name}.weight"), vec![outputs, inputs]);
                if self.features.ffn_bias {
                    add(&format!("mlp.{name}.bias"), vec![outputs]);
                }
            }
            if self.features.post_norms {
                add("post_feedforward_layernorm.weight", vec![d]);
            }
        }
        shapes.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tied {
            shapes.push(("lm_head.weight".to_owned(), vec![self.vocab_size, d]));
        }
        shapes
    }

    fn attention_shapes(&self, add: &mut impl FnMut(&str, Vec<usize>)) {
        let d = self.hidden_size;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let gated = if self.features.output_gate { 2 * q } else { q };
        let bias = self.features.attention_bias;
        let projections = [
            ("q_proj", gated, d, bias != AttentionBias::None),
            ("k_proj", kv, d, bias != AttentionBias::None),
            ("v_proj", kv, d, bias != AttentionBias::None),
            ("o_proj", d, q, bias == AttentionBias::All),
        ];
        for (name, outputs, inputs, bias) in projections {
            add(&format!("self_attn.{name}.weight"), vec![outputs, inputs]);
            if bias {
                add(&format!("self_attn.{name}.bias"), vec![outputs]);
            }
        }
        if self.features.qk_norm {
            add("self_attn.q_norm.weight", vec![self.head_dim]);
            add("self_attn.k_norm.weight", vec![self.head_dim]);
        }
    }

    fn delta_net_shapes(&self, shape: DeltaNetShape, add: &mut impl FnMut(&str, Vec<usize>)) {
        let d = self.hidden_size;
        add("linear_attn.dt_bias", vec![shape.value_heads]);
        add("linear_attn.A_log", vec![shape.value_heads]);
        add("linear_attn.conv1d.weight", vec![shape.channels(), 1, shape.kernel]);
        add("linear_attn.norm.weight", vec![shape.value_dim]);
        add("linear_attn.out_proj.weight", vec![d, shape.values()]);
        add("linear_attn.in_proj_qkv.weight", vec![shape.channels(), d]);
        add("linear_attn.in_proj_z.weight", vec![shape.values(), d]);
        add("linear_attn.in_proj_b.weight", vec![shape.value_heads, d]);
        add("linear_attn.in_proj_a.weight", vec![shape.value_heads, d]);
    }

    /// Number of parameters (a tied head counts once).
    pub fn parameter_count(&self) -> u64 {
        self.parameter_shapes().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }
}
