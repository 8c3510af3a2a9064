//! Where blocks differ, by the key that a `config.json` has for it: file formats have one number for all blocks of most things.

use super::{AttentionSpec, BlockSpec};

/// The first thing in which a block differs from an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Hugging Face's key.
    pub key: &'static str,
    /// The block.
    pub layer: usize,
    /// What it has.
    pub found: String,
    /// The first block that has something of the kind.
    pub first: usize,
    /// What that one has.
    pub expected: String,
}

impl Difference {
    /// The block and what it has, for an error.
    pub fn found(&self) -> String {
        format!("{} in block {}", self.found, self.layer)
    }

    /// The first block and what it has, for an error.
    pub fn expected(&self) -> String {
        format!("{}, as in block {}", self.expected, self.first)
    }
}

/// What a block has under a key; none for a block without that part.
type Shown = fn(&BlockSpec) -> Option<String>;

/// What blocks can differ in, apart from the kind of their mixer and whether they have a window.
const FIELDS: [(&str, Shown); 17] = [
    ("num_attention_heads", |block| attention(block, |a| Some(a.heads.to_string()))),
    ("num_key_value_heads", |block| attention(block, |a| Some(a.kv_heads.to_string()))),
    ("head_dim", |block| attention(block, |a| Some(a.head_dim.to_string()))),
    ("sliding_window", |block| attention(block, |a| a.window.map(|window| window.to_string()))),
    ("rope_theta", |block| attention(block, |a| Some(a.rope_theta.to_string()))),
    ("rope_scaling", |block| attention(block, |a| Some(format!("{:?}", a.rope_scaling)))),
    ("partial_rotary_factor", |block| attention(block, |a| Some(a.rotary_dim.to_string()))),
    ("attention_bias", |block| attention(block, |a| Some(format!("{:?}", a.bias)))),
    ("qk_norm", |block| attention(block, |a| Some(a.qk_norm.to_string()))),
    ("attn_output_gate", |block| attention(block, |a| Some(a.output_gate.to_string()))),
    ("query_pre_attn_scalar", |block| attention(block, |a| Some(a.query_scalar.to_string()))),
    ("attn_logit_softcapping", |block| attention(block, |a| Some(format!("{:?}", a.cap)))),
    ("linear_attention", |block| block.delta_net().map(|shape| format!("{shape:?}"))),
    ("intermediate_size", |block| Some(block.ffn.width.to_string())),
    ("hidden_act", |block| Some(format!("{:?}", block.ffn.activation))),
    ("mlp_bias", |block| Some(block.ffn.bias.to_string())),
    ("post_norms", |block| Some(block.post_norms.to_string())),
];

fn attention(block: &BlockSpec, shown: impl Fn(&AttentionSpec) -> Option<String>) -> Option<String> {
    block.attention().and_then(shown)
}

/// The first difference between blocks in anything but the keys that may differ.
pub fn first_difference(blocks: &[BlockSpec], may_differ: &[&str]) -> Option<Difference> {
    FIELDS.iter().filter(|(key, _)| !may_differ.contains(key)).find_map(|&(key, shown)| {
        let mut having = blocks.iter().enumerate().filter_map(|(layer, block)| Some((layer, shown(block)?)));
        let (first, expected) = having.next()?;
        let (layer, found) = having.find(|(_, found)| *found != expected)?;
        Some(Difference { key, layer, found, first, expected })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::features::Family;
    use crate::model::spec::Uniform;

    #[test]
    fn the_block_that_differs_is_named() {
        for family in Family::ALL {
            assert_eq!(first_difference(&Uniform { family, ..Uniform::small() }.config().blocks, &[]), None);
        }
        let mut blocks = Uniform { family: Family::Gemma2, layers: 4, ..Uniform::small() }.config().blocks;
        blocks[3].ffn.width = 7;
        let found = first_difference(&blocks, &["num_attention_heads"]).unwrap();
        assert_eq!((found.key, found.layer, found.first), ("intermediate_size", 3, 0));
        assert_eq!(found.found(), "7 in block 3");
        blocks[2].attention_mut().unwrap().window = Some(3);
        let found = first_difference(&blocks, &["intermediate_size"]).unwrap();
        // Blocks without a window have none to differ in.
        assert_eq!((found.key, found.layer, found.first), ("sliding_window", 2, 0));
        assert_eq!(first_difference(&blocks, &["intermediate_size", "sliding_window"]), None);
    }
}
