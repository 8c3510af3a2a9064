//! Groups of parameters that move alike: by which algorithm, how fast, and in which direction.

use super::{AdamWConfig, Matrices, MuonConfig};
use crate::model::Role;
use crate::model::parameters::Parameter;

/// A group of parameters.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name, for errors.
    pub name: &'static str,
    /// Which parameters belong to it, unless a group before it takes them.
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

/// Which parameters a group takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Takes {
    /// Those of a class.
    Class(Class),
    /// Those with these names: variables of a method, which have no role.
    Named(Vec<String>),
}

impl Takes {
    /// Whether a parameter is one of them.
    pub fn takes(&self, parameter: &Parameter) -> bool {
        match self {
            Self::Class(class) => *class == Class::of(parameter.role, parameter.var.dims()),
            Self::Named(names) => names.contains(&parameter.name),
        }
    }
}

/// Kinds of parameters that a recipe tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Matrices of blocks and adapters.
    Matrix,
    /// Embedding and head.
    Embedding,
    /// Norms, biases, gates.
    Vector,
    /// Kernels of convolutions, and matrices that are no part of a model.
    Other,
}

impl Class {
    /// The class of a parameter with this role and shape. Every parameter has one.
    pub fn of(role: Option<Role>, dims: &[usize]) -> Self {
        match role {
            _ if dims.len() < 2 => Self::Vector,
            Some(Role::Embedding | Role::Head) => Self::Embedding,
            Some(role) if role.is_block_matrix() => Self::Matrix,
            _ => Self::Other,
        }
    }
}

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
    /// The groups of a recipe, one for each class: together they take every parameter.
    pub fn of_recipe(matrices: Matrices, muon: MuonConfig, adamw: AdamWConfig) -> Vec<Self> {
        let group = |name, class, rate: Option<f64>| Self {
            name,
            takes: Takes::Class(class),
            algorithm: adamw.algorithm(),
            rate: rate.unwrap_or(adamw.lr),
            scheduled: true,
            direction: Direction::Descend,
        };
        let mut vectors = group("vectors", Class::Vector, adamw.vector_lr);
        if let Algorithm::AdamW { weight_decay, .. } = &mut vectors.algorithm {
            *weight_decay = 0.0;
        }
        let mut blocks = group("matrices of blocks", Class::Matrix, adamw.matrix_lr);
        if matrices == Matrices::Muon {
            blocks.algorithm = muon.algorithm();
            blocks.rate = muon.lr;
        }
        let outer = group("embedding and head", Class::Embedding, adamw.embedding_lr);
        vec![vectors, blocks, outer, group("others", Class::Other, None)]
    }
}
