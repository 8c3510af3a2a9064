//! Groups of parameters that move alike: by which algorithm, how fast, and in which direction.

use std::sync::Arc;

use super::{AdamWConfig, Matrices, MuonConfig, is_block_matrix};

/// A group of parameters.
#[derive(Clone)]
pub struct Group {
    /// Its name, for errors.
    pub name: &'static str,
    /// Whether a parameter with this name and shape belongs to it.
    pub takes: Takes,
    /// How its parameters move.
    pub algorithm: Algorithm,
    /// Peak learning rate.
    pub rate: f64,
    /// Whether the run's schedule scales the rate.
    pub scheduled: bool,
    /// Where its parameters move.
    pub direction: Direction,
}

/// Chooses parameters by name and shape.
pub type Takes = Arc<dyn Fn(&str, &[usize]) -> bool + Send + Sync>;

/// How a parameter moves, with the constants of that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Algorithm {
    /// Muon, for matrices alone.
    Muon {
        /// Decay of the momentum.
        momentum: f64,
        /// Decoupled weight decay, multiplied by the learning rate.
        weight_decay: f64,
    },
    /// AdamW.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
        /// Decoupled weight decay, multiplied by the learning rate.
        weight_decay: f64,
    },
}

/// Whether a group makes the loss smaller or larger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Direction {
    /// Smaller: what a model learns.
    #[default]
    Descend,
    /// Larger: Lagrange multipliers, which grow while their constraint is violated. Weight decay
    /// still makes them smaller.
    Ascend,
}

impl Direction {
    /// Of the step that the algorithm gives.
    pub(super) fn sign(self) -> f64 {
        match self {
            Self::Descend => 1.0,
            Self::Ascend => -1.0,
        }
    }
}

impl Group {
    /// The groups of a recipe: vectors, matrices of blocks and adapters, embedding and head, and all
    /// other parameters.
    pub fn of_recipe(matrices: Matrices, muon: MuonConfig, adamw: AdamWConfig) -> Vec<Self> {
        let group = |name, takes: fn(&str, &[usize]) -> bool, rate: Option<f64>| Self {
            name,
            takes: Arc::new(takes),
            algorithm: adamw.algorithm(),
            rate: rate.unwrap_or(adamw.lr),
            scheduled: true,
            direction: Direction::Descend,
        };
        let mut vectors = group("vectors", |_, dims| dims.len() < 2, adamw.vector_lr);
        if let Algorithm::AdamW { weight_decay, .. } = &mut vectors.algorithm {
            *weight_decay = 0.0;
        }
        let mut blocks = group("matrices of blocks", is_block_matrix, adamw.matrix_lr);
        if matrices == Matrices::Muon {
            blocks.algorithm = muon.algorithm();
            blocks.rate = muon.lr;
        }
        let outer =
            |name: &str, _: &[usize]| name.starts_with("model.embed_tokens.") || name.starts_with("lm_head.");
        let outer = group("embedding and head", outer, adamw.embedding_lr);
        vec![vectors, blocks, outer, group("others", |_, _| true, None)]
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, takes: _, algorithm, rate, scheduled, direction } = self;
        let mut out = f.debug_struct("Group");
        out.field("name", name).field("algorithm", algorithm).field("rate", rate);
        out.field("scheduled", scheduled).field("direction", direction).finish_non_exhaustive()
    }
}
