//! `[adapter]`: a small set of parameters that is trained on a frozen base.

use serde::{Deserialize, Serialize};

/// Exactly one of `lora` and `felix`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecipe {
    /// The task that it is for; written to the adapter's file.
    pub task: Option<String>,
    /// Name of the prompt that it was trained with; written to the adapter's file.
    pub prompt: Option<String>,
    /// Low-rank changes of weight matrices.
    pub lora: Option<LoraRecipe>,
    /// Gated bottlenecks after blocks.
    pub felix: Option<FelixRecipe>,
}

/// `[adapter.lora]` (Hu et al. 2021).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraRecipe {
    /// Rank r.
    pub rank: usize,
    /// The change is multiplied by alpha / r.
    pub alpha: f64,
    /// Names of the matrices: `q_proj`, `down_proj` ...
    #[serde(default = "all_projections")]
    pub targets: Vec<String>,
}

fn all_projections() -> Vec<String> {
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(str::to_owned).into()
}

/// `[adapter.felix]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FelixRecipe {
    /// Bottlenecks S after each block.
    pub spokes: usize,
    /// Rank r of each.
    pub rank: usize,
    /// Initial values of the gates.
    pub gate: GateStart,
}

impl Default for FelixRecipe {
    fn default() -> Self {
        Self { spokes: 4, rank: 64, gate: GateStart::Uniform }
    }
}

/// Initial values of the gates of a Felix spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateStart {
    /// Half open everywhere: b = 0.
    #[default]
    Uniform,
    /// From nearly closed to nearly open: b = -2 + 4 l / (L - 1).
    Progressive,
}
