//! Converts between Hugging Face's and llama.cpp's storage of parameters where they differ, for
//! weights and for the two matrices of a LoRA.

use super::config_keys::QUERY_SCALAR_KEY;
use super::names::architecture;
use crate::gguf::{Gguf, GgufError};
use crate::model::DecoderConfig;
use crate::model::features::{DeltaNetShape, Family, NormWeight};

/// A difference between the two formats.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// Rows of each head: Hugging Face rotates dimension j with j + half, llama.cpp's `llama` graph
    /// 2j with 2j + 1.
    Interleave { heads: usize, head_dim: usize },
    /// Norms that multiply by one plus their weight are stored with the one added.
    AddOne,
    /// The rate of decay is stored as `-exp(rate)`.
    MinusExp,
    /// A factor that llama.cpp's graph lacks, folded into the weights.
    Scale(f32),
    /// Rows in the order of value heads.
    Rows(Tile),
    /// Columns in the order of value heads, within each row.
    Columns(Tile),
}

/// Value heads as blocks of `block` rows or columns after the first `skip`, `key_heads` x
/// `per_key` at a time. Hugging Face groups them by key head; llama.cpp has the first of each key
/// head, then the second of each.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tile {
    skip: usize,
    key_heads: usize,
    per_key: usize,
    block: usize,
}

/// The properties of a model that determine the order and scale of its values in a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    family: Family,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Factor of the query weights, because llama.cpp divides scores by the square root of another
    /// number.
    query_factor: f32,
    delta_net: Option<DeltaNetShape>,
}

/// One of the two matrices of a LoRA, whose product `B A` is added to a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// `[rank, inputs]`
    A,
    /// `[outputs, rank]`
    B,
}

impl Order {
    pub(crate) fn of(config: &DecoderConfig) -> Self {
        let assumed = assumed_query_scalar(config);
        Self {
            family: config.family,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            query_factor: (assumed / config.features.query_scalar).sqrt() as f32,
            delta_net: config.features.delta_net(),
        }
    }

    /// The order of a file that has passed `check_model`; `None` for unknown architectures. Unlike
    /// a whole configuration, it exists for files that need features that only llama.cpp computes.
    ///
    /// # Errors
    /// Keys that are missing or of another type.
    pub(crate) fn of_file(file: &Gguf) -> Result<Option<Self>, GgufError> {
        let found: &str = file.get("general.architecture")?;
        let Some(family) = Family::ALL.into_iter().find(|family| architecture(*family) == found) else {
            return Ok(None);
        };
        let find = |name: &str| Ok(file.find::<u32>(&format!("{found}.{name}"))?.map(|n| n as usize));
        let count = |name: &str| Ok::<_, GgufError>(file.get::<u32>(&format!("{found}.{name}"))? as usize);
        let (hidden, heads) = (count("embedding_length")?, count("attention.head_count")?);
        let head_dim = find("attention.key_length")?.unwrap_or(hidden / heads.max(1));
        let assumed = assumed(family, count("block_count")?, hidden, heads, head_dim);
        let scalar = file.find::<f64>(QUERY_SCALAR_KEY)?.unwrap_or(assumed);
        let delta_net = match find("ssm.time_step_rank")?.filter(|_| family == Family::Qwen3_5) {
            None => None,
            Some(value_heads) => Some(DeltaNetShape {
                key_heads: count("ssm.group_count")?,
                value_heads,
                key_dim: count("ssm.state_size")?,
                value_dim: count("ssm.inner_size")? / value_heads.max(1),
                kernel: count("ssm.conv_kernel")?,
            }),
        };
        let query_factor = (assumed / scalar).sqrt() as f32;
        let kv_heads = find("attention.head_count_kv")?.unwrap_or(heads);
        Ok(Some(Self { family, heads, kv_heads, head_dim, query_factor, delta_net }))
    }

    /// Converts a matrix of a LoRA on the parameter `name` (Hugging Face's) to the order of a GGUF
    /// file.
    pub(crate) fn half_to_gguf(&self, name: &str, half: Half, mut values: Vec<f32>) -> Vec<f32> {
        for step in self.steps(name).into_iter().filter(|step| step.acts_on(half)) {
            values = step.apply(values);
        }
        values
    }

    /// The inverse of [`Self::half_to_gguf`].
    pub(crate) fn half_from_gguf(&self, name: &str, half: Half, mut values: Vec<f32>) -> Vec<f32> {
        for step in self.steps(name).into_iter().rev().filter(|step| step.acts_on(half)) {
            values = step.undo(values);
        }
        values
    }

    fn steps(&self, name: &str) -> Vec<Step> {
        let (part, last) = parts(name);
        match part {
            "self_attn.q_proj" | "self_attn.k_proj" if self.family == Family::Llama => {
                let heads = if part == "self_attn.q_proj" { self.heads } else { self.kv_heads };
                vec![Step::Interleave { heads, head_dim: self.head_dim }]
            }
            "self_attn.q_proj" if (self.query_factor - 1.0).abs() > 0.0 => {
                vec![Step::Scale(self.query_factor)]
            }
            "linear_attn.norm" => vec![],
            _ if is_norm(part) => match self.family.features(1, self.heads, self.head_dim).norm {
                NormWeight::Plain => vec![],
                NormWeight::OnePlus => vec![Step::AddOne],
            },
            _ => self.delta_net.map_or_else(Vec::new, |shape| {
                let rate = (last == "A_log").then_some(Step::MinusExp);
                delta_tile(shape, part, last).into_iter().chain(rate).collect()
            }),
        }
    }
}

/// Whether models of an architecture may store this parameter in another order or scale than
/// Hugging Face, so that converting a LoRA on it needs the model.
pub(crate) fn needs_order(found: &str, name: &str) -> bool {
    let (part, _) = parts(name);
    let is = |family: Family| architecture(family) == found;
    (is(Family::Llama) && matches!(part, "self_attn.q_proj" | "self_attn.k_proj"))
        || (is(Family::Gemma2) && part == "self_attn.q_proj")
        || (is(Family::Qwen3_5) && part.starts_with("linear_attn."))
}

/// The module of a parameter in its block (or in the model), and the last part of its name.
fn parts(name: &str) -> (&str, &str) {
    let (module, last) = name.rsplit_once('.').unwrap_or((name, name));
    let module = module.strip_prefix("model.").unwrap_or(module);
    let part = module.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    (part.map_or(module, |(_, part)| part), last)
}

fn is_norm(part: &str) -> bool {
    matches!(part, "norm" | "self_attn.q_norm" | "self_attn.k_norm") || part.ends_with("layernorm")
}

/// Converts the values of a parameter to llama.cpp's storage.
pub(super) fn to_gguf(config: &DecoderConfig, name: &str, mut values: Vec<f32>) -> Vec<f32> {
    for step in Order::of(config).steps(name) {
        values = step.apply(values);
    }
    values
}

/// The inverse of [`to_gguf`].
pub(super) fn from_gguf(config: &DecoderConfig, name: &str, mut values: Vec<f32>) -> Vec<f32> {
    for step in Order::of(config).steps(name).into_iter().rev() {
        values = step.undo(values);
    }
    values
}

/// The number by whose square root llama.cpp's graph divides scores.
pub(super) fn assumed_query_scalar(config: &DecoderConfig) -> f64 {
    assumed(config.family, config.layers, config.hidden_size, config.heads, config.head_dim)
}

fn assumed(family: Family, layers: usize, hidden: usize, heads: usize, head_dim: usize) -> f64 {
    // llama.cpp recognises Gemma 2 27B by its number of layers.
    if family == Family::Gemma2 && layers == 46 { hidden as f64 / heads as f64 } else { head_dim as f64 }
}

/// How a parameter of a DeltaNet block is tiled, if it is.
fn delta_tile(shape: DeltaNetShape, part: &str, last: &str) -> Option<Step> {
    let DeltaNetShape { key_heads, value_heads, value_dim, .. } = shape;
    let per_key = value_heads / key_heads;
    if key_heads <= 1 || per_key <= 1 {
        return None;
    }
    let tile = |skip: usize, block: usize| Tile { skip, key_heads, per_key, block };
    match (part, last) {
        ("linear_attn", "A_log" | "dt_bias") | ("linear_attn.in_proj_a" | "linear_attn.in_proj_b", _) => {
            Some(Step::Rows(tile(0, 1)))
        }
        ("linear_attn.in_proj_qkv" | "linear_attn.conv1d", _) => {
            Some(Step::Rows(tile(shape.channels() - shape.values(), value_dim)))
        }
        ("linear_attn.in_proj_z", _) => Some(Step::Rows(tile(0, value_dim))),
        ("linear_attn.out_proj", _) => Some(Step::Columns(tile(0, value_dim))),
        _ => None,
    }
}

impl Step {
    /// Whether the step applies to this matrix of a LoRA: B has the rows of the weight, A its
    /// columns, and a factor goes on one of them.
    fn acts_on(self, half: Half) -> bool {
        match self {
            Self::Interleave { .. } | Self::Scale(_) | Self::Rows(_) => half == Half::B,
            Self::Columns(_) => half == Half::A,
            // These are vectors, which no LoRA changes.
            Self::AddOne | Self::MinusExp => false,
        }
    }

    fn apply(self, values: Vec<f32>) -> Vec<f32> {
        let each = |f: &dyn Fn(f32) -> f32| values.iter().map(|&value| f(value)).collect();
        match self {
            Self::Interleave { heads, head_dim } => {
                reorder(&values, heads, head_dim, |row| (row % 2) * (head_dim / 2) + row / 2)
            }
            Self::AddOne => each(&|value| value + 1.0),
            Self::MinusExp => each(&|value| -value.exp()),
            Self::Scale(factor) => each(&|value| value * factor),
            Self::Rows(tile) => tile.rows(&values, |to| tile.from(to)),
            Self::Columns(tile) => tile.columns(&values, |to| tile.from(to)),
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
            Self::Rows(tile) => tile.rows(&values, |to| tile.back(to)),
            Self::Columns(tile) => tile.columns(&values, |to| tile.back(to)),
        }
    }
}

impl Tile {
    fn count(self) -> usize {
        self.key_heads * self.per_key
    }

    /// The block that becomes block `to` in llama.cpp's order.
    fn from(self, to: usize) -> usize {
        (to % self.key_heads) * self.per_key + to / self.key_heads
    }

    /// The block in llama.cpp's order that becomes block `to`.
    fn back(self, to: usize) -> usize {
        (to % self.per_key) * self.key_heads + to / self.per_key
    }

    /// Reorders rows of any width.
    fn rows(self, values: &[f32], from: impl Fn(usize) -> usize) -> Vec<f32> {
        let width = values.len() / (self.skip + self.count() * self.block);
        tile(values, self.skip * width, self.block * width, self.count(), from)
    }

    fn columns(self, values: &[f32], from: impl Fn(usize) -> usize) -> Vec<f32> {
        tile(values, 0, self.block, self.count(), from)
    }
}

/// Moves row `from(r)` of each head to row r.
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

/// After `skip` values, moves block `from(b)` of each run of `count` to block b.
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
            // One value that stays, then 2 key heads with 3 value heads each.
            (
                Step::Rows(Tile { skip: 1, key_heads: 2, per_key: 3, block: 1 }),
                vec![9.0, 0.0, 1.0, 2.0, 10.0, 11.0, 12.0],
                vec![9.0, 0.0, 10.0, 1.0, 11.0, 2.0, 12.0],
            ),
            // The same with rows of two.
            (
                Step::Rows(Tile { skip: 1, key_heads: 2, per_key: 2, block: 1 }),
                vec![9.0, 9.5, 0.0, 0.5, 1.0, 1.5, 10.0, 10.5, 11.0, 11.5],
                vec![9.0, 9.5, 0.0, 0.5, 10.0, 10.5, 1.0, 1.5, 11.0, 11.5],
            ),
            (
                Step::Columns(Tile { skip: 0, key_heads: 2, per_key: 2, block: 1 }),
                vec![0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0],
                vec![0.0, 10.0, 1.0, 11.0, 2.0, 12.0, 3.0, 13.0],
            ),
        ];
        for (step, values, expected) in steps {
            let stored = step.apply(values.clone());
            assert_eq!(stored, expected, "{step:?}");
            assert_eq!(step.undo(stored), values, "{step:?}");
        }
    }
}
