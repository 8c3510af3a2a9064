//! What a decoder looks like: the numbers of a Hugging Face `config.json`, validated, and the parameters that follow from them.

use serde::{Deserialize, Serialize};

use super::{AttentionSpec, BlockSpec, Mixer};
use crate::model::features::{AttentionBias, DeltaNetShape, Family, Features};

/// Shape and constants of a decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// Architecture.
    pub family: Family,
    /// Vocabulary entries.
    pub vocab_size: usize,
    /// Width D of the residual stream.
    pub hidden_size: usize,
    /// The decoder blocks, from the first to the last.
    pub blocks: Vec<BlockSpec>,
    /// Epsilon of every RMS norm.
    pub rms_eps: f64,
    /// Whether the head shares the embedding matrix.
    pub tied: bool,
    /// Positions that the model was trained for.
    pub max_position: usize,
    /// What sets its architecture apart, outside the blocks.
    pub features: Features,
}

impl DecoderConfig {
    /// Number L of decoder blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Attention of the blocks that have it, in order.
    pub fn attention(&self) -> impl Iterator<Item = &AttentionSpec> {
        self.blocks.iter().filter_map(BlockSpec::attention)
    }

    /// Windows of the attention blocks that have one.
    pub fn windows(&self) -> impl Iterator<Item = usize> {
        self.attention().filter_map(|attention| attention.window)
    }

    /// Sizes of the first `DeltaNet` block, where there are any.
    pub fn delta_net(&self) -> Option<DeltaNetShape> {
        self.blocks.iter().find_map(BlockSpec::delta_net)
    }

    /// Names (Hugging Face) and shapes of all parameters, in their fixed order: embedding, blocks, final norm, head.
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.hidden_size;
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut add = |name: &str, shape: Vec<usize>| {
                shapes.push((format!("model.layers.{layer}.{name}"), shape));
            };
            let f = block.ffn.width;
            add("input_layernorm.weight", vec![d]);
            match &block.mixer {
                Mixer::Attention(attention) => self.attention_shapes(attention, &mut add),
                Mixer::DeltaNet(shape) => self.delta_net_shapes(*shape, &mut add),
            }
            add("post_attention_layernorm.weight", vec![d]);
            if block.post_norms {
                add("pre_feedforward_layernorm.weight", vec![d]);
            }
            for (name, outputs, inputs) in
                [("gate_proj", f, d), ("up_proj", f, d), ("down_proj", d, f)]
            {
                add(&format!("mlp.{name}.weight"), vec![outputs, inputs]);
                if block.ffn.bias {
                    add(&format!("mlp.{name}.bias"), vec![outputs]);
                }
            }
            if block.post_norms {
                add("post_feedforward_layernorm.weight", vec![d]);
            }
        }
        shapes.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tied {
            shapes.push(("lm_head.weight".to_owned(), vec![self.vocab_size, d]));
        }
        shapes
    }

    fn attention_shapes(&self, attention: &AttentionSpec, add: &mut impl FnMut(&str, Vec<usize>)) {
        let d = self.hidden_size;
        let &AttentionSpec { heads, kv_heads, head_dim, bias, .. } = attention;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let gated = if attention.output_gate { 2 * q } else { q };
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
        if attention.qk_norm {
            add("self_attn.q_norm.weight", vec![head_dim]);
            add("self_attn.k_norm.weight", vec![head_dim]);
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
