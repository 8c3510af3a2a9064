//! How llama.cpp stores the values of some parameters otherwise than Hugging Face, there and back: of weights, and of the two
//! matrices of a LoRA, whose product is added to them.

use super::config_keys::QUERY_SCALAR_KEY;
use super::names::{family_of, is_per_block};
use crate::gguf::{Gguf, GgufError, PerBlock};
use crate::model::features::{DeltaNetShape, Family, NormWeight};
use crate::model::spec::{LoraSide, NormAt, Part};
use crate::model::{BlockSpec, DecoderConfig, Projection, Role};

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
    /// Rows in the order of value heads.
    Rows(Tile),
    /// Columns in the order of value heads: each row on its own.
    Columns(Tile),
}

/// Value heads, in blocks of so many rows or columns after the first `skip`, `key_heads` x `per_key` at a time: Hugging Face has
/// those of one key head side by side, llama.cpp the first of each key head, then the second of each.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tile {
    skip: usize,
    key_heads: usize,
    per_key: usize,
    block: usize,
}

/// What of a model decides the order and the scale of its values in a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    family: Family,
    /// Query heads and key/value heads of each block; none of blocks without attention.
    heads: Vec<Option<[usize; 2]>>,
    head_dim: usize,
    /// What query weights are multiplied by, because llama.cpp divides scores by the square root of another number.
    query_factor: f32,
    delta_net: Option<DeltaNetShape>,
}

impl Order {
    pub(crate) fn of(config: &DecoderConfig) -> Self {
        let attention = config.attention().next();
        let assumed = assumed_query_scalar(config);
        let scalar = attention.map_or(assumed, |attention| attention.query_scalar);
        let heads = |block: &BlockSpec| block.attention().map(|a| [a.heads, a.kv_heads]);
        Self {
            family: config.family,
            heads: config.blocks.iter().map(heads).collect(),
            head_dim: attention.map_or(0, |attention| attention.head_dim),
            query_factor: (assumed / scalar).sqrt() as f32,
            delta_net: config.delta_net(),
        }
    }

    /// The order of a file that has passed `check_model`; none for an architecture that is not computed here. Unlike a whole
    /// configuration, it is there for files that ask for what only llama.cpp computes.
    ///
    /// # Errors
    /// Keys that are missing, or of another type.
    pub(crate) fn of_file(file: &Gguf) -> Result<Option<Self>, GgufError> {
        let found: &str = file.get("general.architecture")?;
        let Some(family) = family_of(found) else { return Ok(None) };
        let find = |name: &str| Ok(file.find::<u32>(&format!("{found}.{name}"))?.map(|n| n as usize));
        let count = |name: &str| Ok::<_, GgufError>(file.get::<u32>(&format!("{found}.{name}"))? as usize);
        let (hidden, layers) = (count("embedding_length")?, count("block_count")?);
        let counts = |name: &str| -> Result<Option<Vec<usize>>, GgufError> {
            let key = format!("{found}.{name}");
            let numbers = if is_per_block(found) {
                file.find::<PerBlock>(&key)?.and_then(|numbers| numbers.of(layers))
            } else {
                file.find::<u32>(&key)?.map(|number| vec![number; layers])
            };
            Ok(numbers.map(|numbers| numbers.into_iter().map(|number| number as usize).collect()))
        };
        let heads = match counts("attention.head_count")? {
            Some(heads) => heads,
            None => vec![count("attention.head_count")?; layers],
        };
        let kv_heads = counts("attention.head_count_kv")?.unwrap_or_else(|| heads.clone());
        let first = heads.first().copied().unwrap_or(1).max(1);
        let head_dim = find("attention.key_length")?.unwrap_or(hidden / first);
        let assumed = assumed(family, layers, hidden, first, head_dim);
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
        let heads =
            heads.into_iter().zip(kv_heads).map(|(heads, kv_heads)| Some([heads, kv_heads])).collect();
        Ok(Some(Self { family, heads, head_dim, query_factor, delta_net }))
    }

    /// A matrix of a LoRA on a parameter as llama.cpp's file of the weights wants it.
    pub(crate) fn half_to_gguf(&self, role: Role, half: LoraSide, mut values: Vec<f32>) -> Vec<f32> {
        for step in self.steps(role).into_iter().filter(|step| step.acts_on(half)) {
            values = step.apply(values);
        }
        values
    }

    /// The inverse of [`Self::half_to_gguf`].
    pub(crate) fn half_from_gguf(&self, role: Role, half: LoraSide, mut values: Vec<f32>) -> Vec<f32> {
        for step in self.steps(role).into_iter().rev().filter(|step| step.acts_on(half)) {
            values = step.undo(values);
        }
        values
    }

    fn steps(&self, role: Role) -> Vec<Step> {
        let norm = || match self.family.features().norm {
            NormWeight::Plain => vec![],
            NormWeight::OnePlus => vec![Step::AddOne],
        };
        let (layer, part) = match role {
            Role::FinalNorm => return norm(),
            Role::Embedding | Role::Head | Role::Outside => return vec![],
            Role::Block { layer, part } => (layer, part),
        };
        match part {
            Part::Norm(NormAt::DeltaRead) => vec![],
            Part::Norm(_) => norm(),
            Part::Weight(of @ (Projection::Query | Projection::Key))
            | Part::Bias(of @ (Projection::Query | Projection::Key))
                if self.family == Family::Llama =>
            {
                let [heads, kv_heads] = self.heads.get(layer).copied().flatten().unwrap_or_default();
                let heads = if of == Projection::Query { heads } else { kv_heads };
                vec![Step::Interleave { heads, head_dim: self.head_dim }]
            }
            Part::Weight(Projection::Query) | Part::Bias(Projection::Query)
                if (self.query_factor - 1.0).abs() > 0.0 =>
            {
                vec![Step::Scale(self.query_factor)]
            }
            part => self.delta_net.map_or_else(Vec::new, |shape| {
                let rate = (part == Part::DecayRate).then_some(Step::MinusExp);
                delta_tile(shape, part).into_iter().chain(rate).collect()
            }),
        }
    }
}

/// Whether models of an architecture may store what a LoRA on this parameter changes in another order or scale than Hugging
/// Face: then the model must be known.
pub(crate) fn needs_order(found: &str, role: Role) -> bool {
    use Projection::{DeltaGate, DeltaMixed, DeltaOutput, DeltaStrength, DeltaTime, Key, Query};
    let Some(part) = role.part() else { return false };
    let weight = if let Part::Weight(projection) = part { Some(projection) } else { None };
    match family_of(found) {
        Some(Family::Llama) => matches!(weight, Some(Query | Key)),
        Some(Family::Gemma2) => weight == Some(Query),
        Some(Family::Qwen3_5) => {
            matches!(weight, Some(DeltaMixed | DeltaGate | DeltaStrength | DeltaTime | DeltaOutput))
                || matches!(part, Part::Convolution | Part::Norm(NormAt::DeltaRead))
        }
        Some(Family::Qwen2 | Family::Qwen3) | None => false,
    }
}

/// The parameter's values as llama.cpp stores them.
pub(super) fn to_gguf(config: &DecoderConfig, role: Role, mut values: Vec<f32>) -> Vec<f32> {
    for step in Order::of(config).steps(role) {
        values = step.apply(values);
    }
    values
}

/// The inverse of [`to_gguf`].
pub(super) fn from_gguf(config: &DecoderConfig, role: Role, mut values: Vec<f32>) -> Vec<f32> {
    for step in Order::of(config).steps(role).into_iter().rev() {
        values = step.undo(values);
    }
    values
}

/// What llama.cpp's graph divides scores by the square root of.
pub(super) fn assumed_query_scalar(config: &DecoderConfig) -> f64 {
    let (heads, head_dim) = config.attention().next().map_or((1, 1), |a| (a.heads, a.head_dim));
    assumed(config.family, config.layers(), config.hidden_size, heads, head_dim)
}

fn assumed(family: Family, layers: usize, hidden: usize, heads: usize, head_dim: usize) -> f64 {
    // It tells Gemma 2 27B by its number of layers.
    if family == Family::Gemma2 && layers == 46 { hidden as f64 / heads as f64 } else { head_dim as f64 }
}

/// How a parameter of a DeltaNet block is tiled, if it is.
fn delta_tile(shape: DeltaNetShape, part: Part) -> Option<Step> {
    let DeltaNetShape { key_heads, value_heads, value_dim, .. } = shape;
    let per_key = value_heads / key_heads;
    if key_heads <= 1 || per_key <= 1 {
        return None;
    }
    let tile = |skip: usize, block: usize| Tile { skip, key_heads, per_key, block };
    match part {
        Part::DecayRate
        | Part::TimeBias
        | Part::Weight(Projection::DeltaTime | Projection::DeltaStrength) => Some(Step::Rows(tile(0, 1))),
        Part::Weight(Projection::DeltaMixed) | Part::Convolution => {
            Some(Step::Rows(tile(shape.channels() - shape.values(), value_dim)))
        }
        Part::Weight(Projection::DeltaGate) => Some(Step::Rows(tile(0, value_dim))),
        Part::Weight(Projection::DeltaOutput) => Some(Step::Columns(tile(0, value_dim))),
        _ => None,
    }
}

impl Step {
    /// Whether it is taken on this matrix of a LoRA: B has the rows of the weight, A its columns, and a factor is on one.
    fn acts_on(self, half: LoraSide) -> bool {
        match self {
            Self::Interleave { .. } | Self::Scale(_) | Self::Rows(_) => half == LoraSide::B,
            Self::Columns(_) => half == LoraSide::A,
            // Of vectors, which no LoRA changes.
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

    /// The block that becomes block `to` of llama.cpp's.
    fn from(self, to: usize) -> usize {
        (to % self.key_heads) * self.per_key + to / self.key_heads
    }

    /// The block of llama.cpp's that becomes block `to`.
    fn back(self, to: usize) -> usize {
        (to % self.per_key) * self.key_heads + to / self.per_key
    }

    /// Rows of any width in another order.
    fn rows(self, values: &[f32], from: impl Fn(usize) -> usize) -> Vec<f32> {
        let width = values.len() / (self.skip + self.count() * self.block);
        tile(values, self.skip * width, self.block * width, self.count(), from)
    }

    fn columns(self, values: &[f32], from: impl Fn(usize) -> usize) -> Vec<f32> {
        tile(values, 0, self.block, self.count(), from)
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
