//! The arithmetic cost of training a token.

use crate::model::DecoderConfig;
use crate::model::features::Mixer;

/// Floating-point operations of a token's forward and backward pass: 6 per weight of a matrix (4
/// if it is frozen, because it needs no gradient), and attention over half the row on average.
/// Recomputed operations count once.
pub fn of_token(config: &DecoderConfig, seq_len: usize, frozen: bool) -> f64 {
    let (matrices, attention) = forward(config, seq_len);
    let per_weight = if frozen { 4.0 } else { 6.0 };
    per_weight * matrices + 3.0 * attention
}

/// The cost that `train.recompute` adds: another forward pass of the blocks.
pub fn of_recomputing(config: &DecoderConfig, seq_len: usize) -> f64 {
    let (matrices, attention) = forward(config, seq_len);
    2.0 * (matrices - (config.vocab_size * config.hidden_size) as f64) + attention
}

/// The forward pass alone.
pub fn of_forward(config: &DecoderConfig, seq_len: usize) -> f64 {
    let (matrices, attention) = forward(config, seq_len);
    2.0 * matrices + attention
}

/// Weights of the matrices that a token passes, and the cost of its attention over half the row on
/// average. A DeltaNet block counts as its matrices; the cost of its state is small in comparison.
fn forward(config: &DecoderConfig, seq_len: usize) -> (f64, f64) {
    let embedding = if config.tied { 0 } else { config.vocab_size * config.hidden_size };
    let vectors: usize = config
        .parameter_shapes()
        .iter()
        .filter(|(_, shape)| shape.len() == 1)
        .map(|(_, shape)| shape[0])
        .sum();
    let matrices = config.parameter_count() as f64 - (embedding + vectors) as f64;
    let attending = config.features.mixers.iter().filter(|mixer| matches!(mixer, Mixer::Attention { .. }));
    let attention = 2.0 * (attending.count() * config.heads * config.head_dim * seq_len) as f64;
    (matrices, attention)
}
