//! What a decoder looks like: the numbers of a Hugging Face `config.json`, validated.

use serde::{Deserialize, Serialize};

use super::{AttentionSpec, BlockSpec};
use crate::model::features::{DeltaNetShape, Family, Features};

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

    /// Names (Hugging Face) and shapes of all parameters, in their order.
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let parameters = self.parameters().into_iter();
        parameters.map(|parameter| (parameter.name.clone(), parameter.shape())).collect()
    }
}
