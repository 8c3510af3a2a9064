//! How llama.cpp stores the values of some parameters otherwise than Hugging Face, there and back.

use crate::model::DecoderConfig;
use crate::model::Family;
use crate::model::features::{DeltaNetShape, NormWeight};

/// A difference between the two files.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// Rows of each head: Hugging Face rotates dimension j with j + half, llama.cpp's `llama` graph 2j with 2j + 1.
    Interleave { heads: usize, head_dim: usize },
    /// Norms that multiply by one plus their weight are stored as what they multiply by.
    AddOne,
    /// The rate of decay is stored as `-exp`.
    MinusExp,
    /// A factor that llama.cpp's graph lacks, folded into the weights.
    Scale(f32),
    /// Value heads, in blocks of so many values after the first `skip`, `key_heads` x `per_key` at a time: Hugging Face has those
    /// of one key head side by side, llama.cpp the first of each key head, then the second of each.
    Tile { skip: usize, key_heads: usize, per_key: usize, block: usize },
}

/// Rows `[heads * head_dim, width]` from Hugging Face's order to that of llama.cpp's `llama`.
pub(crate) fn interleave(values: Vec<f32>, heads: usize, head_dim: usize) -> Vec<f32> {
    Step::Interleave { heads, head_dim }.apply(values)
}

/// The inverse of [`interleave`].
pub(crate) fn deinterleave(values: Vec<f32>, heads: usize, head_dim: usize) -> Vec<f32> {
    Step::Interleave { heads, head_dim }.undo(values)
}

/// The parameter's values as llama.cpp stores them.
pub(super) fn to_gguf(config: &DecoderConfig, name: &str, mut values: Vec<f32>) -> Vec<f32> {
    for step in steps(config, name) {
        values = step.apply(values);
    }
    values
}

/// The inverse of [`to_gguf`].
pub(super) fn from_gguf(config: &DecoderConfig, name: &str, mut values: Vec<f32>) -> Vec<f32> {
    for step in steps(config, name).into_iter().rev() {
        values = step.undo(values);
    }
    values
}

/// What llama.cpp's graph divides scores by the square root of.
pub(super) fn assumed_query_scalar(config: &DecoderConfig) -> f64 {
    // It tells Gemma 2 27B by its number of layers.
    if config.family == Family::Gemma2 && config.layers == 46 {
        return config.hidden_size as f64 / config.heads as f64;
    }
    config.head_dim as f64
}

fn steps(config: &DecoderConfig, name: &str) -> Vec<Step> {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    let module = module.strip_prefix("model.").unwrap_or(module);
    let part = module.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    let part = part.map_or(module, |(_, part)| part);
    let last = name.rsplit('.').next().unwrap_or(name);
    match part {
        "self_attn.q_proj" | "self_attn.k_proj" if config.family == Family::Llama => {
            let heads = if part == "self_attn.q_proj" { config.heads } else { config.kv_heads };
            vec![Step::Interleave { heads, head_dim: config.head_dim }]
        }
        "self_attn.q_proj" => {
            let factor = (assumed_query_scalar(config) / config.features.query_scalar).sqrt() as f32;
            if (factor - 1.0).abs() > 0.0 { vec![Step::Scale(factor)] } else { vec![] }
        }
        "linear_attn.norm" => vec![],
        "norm" | "self_attn.q_norm" | "self_attn.k_norm" => add_one(config),
        _ if part.ends_with("layernorm") => add_one(config),
        _ => config.features.delta_net().map_or_else(Vec::new, |shape| {
            let tile = delta_tile(shape, part, last, config.hidden_size);
            let rate = (last == "A_log").then_some(Step::MinusExp);
            tile.into_iter().chain(rate).collect()
        }),
    }
}

fn add_one(config: &DecoderConfig) -> Vec<Step> {
    match config.features.norm {
        NormWeight::Plain => vec![],
        NormWeight::OnePlus => vec![Step::AddOne],
    }
}

/// How a parameter of a DeltaNet block is tiled, if it is.
fn delta_tile(shape: DeltaNetShape, part: &str, last: &str, hidden: usize) -> Option<Step> {
    let DeltaNetShape { key_heads, value_heads, value_dim, kernel, .. } = shape;
    let before_values = shape.channels() - shape.values();
    let (skip, block) = match (part, last) {
        ("linear_attn", "A_log" | "dt_bias") => (0, 1),
        ("linear_attn.in_proj_qkv", _) => (before_values * hidden, value_dim * hidden),
        ("linear_attn.conv1d", _) => (before_values * kernel, value_dim * kernel),
        ("linear_attn.in_proj_z", _) => (0, value_dim * hidden),
        ("linear_attn.in_proj_a" | "linear_attn.in_proj_b", _) => (0, hidden),
        // Columns: each row on its own.
        ("linear_attn.out_proj", _) => (0, value_dim),
        _ => return None,
    };
    let per_key = value_heads / key_heads;
    (key_heads > 1 && per_key > 1).then_some(Step::Tile { skip, key_heads, per_key, block })
}

impl Step {
    fn apply(self, values: Vec<f32>) -> Vec<f32> {
        let each = |f: &dyn Fn(f32) -> f32| values.iter().map(|&value| f(value)).collect();
        match self {
            Self::Interleave { heads, head_dim } => {
                reorder(&values, heads, head_dim, |row| (row % 2) * (head_dim / 2) + row / 2)
            }
            Self::AddOne => each(&|value| value + 1.0),
            Self::MinusExp => each(&|value| -value.exp()),
            Self::Scale(factor) => each(&|value| value * factor),
            Self::Tile { skip, key_heads, per_key, block } => {
                tile(&values, skip, block, key_heads * per_key, |to| {
                    (to % key_heads) * per_key + to / key_heads
                })
            }
        }
    }

    fn undo(self, values: Vec<f32>) -> Vec<f32> {
        let each = |f: &dyn Fn(f32) -> f32| values.iter().map(|&value| f(value)).collect();
        match self {
            Self::Interleave { heads, head_dim } => {
                reorder(&values, heads, head_dim, |row| (row % (head_dim / 2)) * 2 + row / (head_dim / 2))
            }
            Self::AddOne => each(&|value| value - 1.0),
            Self::MinusExp => each(&|value| (-value).ln()),
            Self::Scale(factor) => each(&|value| value / factor),
            Self::Tile { skip, key_heads, per_key, block } => {
                tile(&values, skip, block, key_heads * per_key, |to| {
                    (to % per_key) * key_heads + to / per_key
                })
            }
        }
    }
}

/// Row r of each head becomes what row `from(r)` was.
fn reorder(values: &[f32], heads: usize, head_dim: usize, from: impl Fn(usize) -> usize) -> Vec<f32> {
    let width = values.len() / (heads * head_dim);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        for row in 0..head_dim {
            out.extend_from_slice(&head[from(row) * width..][..width]);
        }
    }
    out
}

/// After `skip` values, block b of each run of `count` becomes what block `from(b)` was.
fn tile(values: &[f32], skip: usize, block: usize, count: usize, from: impl Fn(usize) -> usize) -> Vec<f32> {
    let (kept, tiled) = values.split_at(skip);
    let mut out = kept.to_vec();
    for run in tiled.chunks_exact(block * count) {
        for to in 0..count {
            out.extend_from_slice(&run[from(to) * block..][..block]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_undone() {
        let steps = [
            (
                Step::Interleave { heads: 2, head_dim: 4 },
                vec![0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0],
                vec![0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0],
            ),
            (Step::AddOne, vec![0.5, -0.25], vec![1.5, 0.75]),
            (Step::MinusExp, vec![0.0], vec![-1.0]),
            (Step::Scale(2.0), vec![0.5], vec![1.0]),
            // One value kept, then 2 key heads of 3 value heads each.
            (
                Step::Tile { skip: 1, key_heads: 2, per_key: 3, block: 1 },
                vec![9.0, 0.0, 1.0, 2.0, 10.0, 11.0, 12.0],
                vec![9.0, 0.0, 10.0, 1.0, 11.0, 2.0, 12.0],
            ),
        ];
        for (step, values, expected) in steps {
            let stored = step.apply(values.clone());
            assert_eq!(stored, expected, "{step:?}");
            assert_eq!(step.undo(stored), values, "{step:?}");
        }
    }
}
