//! `[train]`: the training loop.

use serde::{Deserialize, Serialize};

use crate::device::{DeviceChoice, Precision};
use crate::train::optimiser::{AdamWConfig, Matrices, MuonConfig};

/// `[train]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Optimiser steps.
    pub steps: u64,
    /// Packed rows per step.
    pub batch: usize,
    /// Tokens per packed row.
    pub seq_len: usize,
    /// Seed of initial values and of the order of the data.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Steps between measurements of gradients, activations and attention; 0 means never.
    #[serde(default)]
    pub metrics_every: u64,
    /// Tokens that one thread processes at a time. Smaller parts stay in its cache; gradients of
    /// parts are accumulated. The sum depends on this value, not on the number of threads.
    #[serde(default = "default_micro_tokens")]
    pub micro_tokens: usize,
    /// The device that computes.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Type of activations and of the weights that they are multiplied by. Trained parameters,
    /// gradients and moments are f32.
    #[serde(default)]
    pub precision: Precision,
    /// Threads; 0 means one per core.
    #[serde(default)]
    pub threads: usize,
    /// Activation checkpointing: each block keeps only its input and recomputes the rest for its
    /// gradients. Memory holds the activations of one block instead of all; a step takes about a
    /// third longer; the results are the same.
    #[serde(default)]
    pub recompute: bool,
    /// Share of the steps that are warm-up.
    #[serde(default = "default_warmup")]
    pub warmup: f64,
    /// Share of the peak learning rate at the last step.
    #[serde(default = "default_floor")]
    pub floor: f64,
    /// Largest gradient norm.
    #[serde(default = "default_clip")]
    pub clip: f64,
    /// Loss of a step above which the run stops, as it does when the loss is not finite.
    #[serde(default = "default_max_loss")]
    pub max_loss: f64,
    /// Decay of the averaged weights that are evaluated and written; 0 writes the last weights.
    #[serde(default)]
    pub ema: f64,
    /// Ends the run when held-out loss no longer falls; the best weights are then the result.
    pub stop: Option<StopRecipe>,
    /// The optimiser of the matrices of blocks and adapters.
    #[serde(default)]
    pub matrices: Matrices,
    /// Settings of Muon.
    #[serde(default)]
    pub muon: MuonConfig,
    /// Settings of AdamW.
    #[serde(default)]
    pub adamw: AdamWConfig,
}

/// `[train.stop]`: early stopping.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRecipe {
    /// Evaluations without progress before the run ends.
    pub patience: u64,
    /// How much held-out loss must fall to count as progress, in nats.
    #[serde(default)]
    pub least: f64,
}

fn default_micro_tokens() -> usize {
    1024
}
fn default_warmup() -> f64 {
    0.02
}
fn default_floor() -> f64 {
    0.05
}
fn default_clip() -> f64 {
    1.0
}
fn default_max_loss() -> f64 {
    100.0
}
