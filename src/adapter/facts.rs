//! Facts about a spoke that an inspection finds.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Digest;

/// The two kinds of spokes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Low-rank updates of weight matrices (Hu et al. 2021); llama.cpp computes them.
    Lora,
    /// Gated bottlenecks after decoder blocks; this program computes them.
    Felix,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lora => "lora",
            Self::Felix => "felix",
        })
    }
}

/// The format in which a spoke is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// llama.cpp's LoRA file, which the engine loads as it is.
    LoraGguf,
    /// PEFT's folder of `adapter_config.json` and `adapter_model.safetensors`.
    PeftFolder,
    /// The same folder in a zip archive.
    PeftZip,
    /// This program's Felix file, which the engine loads as it is.
    FelixGguf,
    /// A Felix spoke under its training names.
    FelixSafetensors,
}

impl Format {
    /// Whether the engine loads this format; the others are converted first.
    pub fn is_served(self) -> bool {
        matches!(self, Self::LoraGguf | Self::FelixGguf)
    }
}

/// An inspected spoke.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spoke {
    /// The format of its files.
    pub format: Format,
    /// Facts that only its kind has.
    #[serde(flatten)]
    pub adapter: Adapter,
    /// Architecture of the post (llama.cpp's name), if recorded.
    pub architecture: Option<String>,
    /// Blocks of the post that the spoke changes, from 0.
    pub layers: BTreeSet<u32>,
    /// Bytes of the file, or of the files of a folder.
    pub file_bytes: u64,
    /// Bytes of weights in memory once it is loaded.
    pub resident_bytes: u64,
    /// Content hash of the post that it was trained on, if recorded.
    pub post: Option<Digest>,
    /// Identity of the tokenizer that it was trained with, if recorded.
    pub tokenizer: Option<Digest>,
    /// Identity of the prompt that it was trained with, if recorded.
    pub prompt: Option<String>,
    /// Task that it was trained for, if recorded.
    pub task: Option<String>,
    /// Norms of the weights, by layer.
    pub norms: Vec<LayerNorms>,
}

impl Spoke {
    /// The spoke's kind.
    pub fn kind(&self) -> Kind {
        match self.adapter {
            Adapter::Lora(_) => Kind::Lora,
            Adapter::Felix(_) => Kind::Felix,
        }
    }
}

/// Facts that only one kind of spoke has.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Adapter {
    Lora(LoraFacts),
    Felix(FelixFacts),
}

/// A LoRA: `W + alpha / r B A` for each target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraFacts {
    /// Numerator of the scale `alpha / r`, never 0. For a PEFT adapter, the value that its
    /// conversion would write.
    pub alpha: f32,
    /// Ranks that occur.
    pub ranks: BTreeSet<u64>,
    /// Names of the changed tensors in the post.
    pub targets: BTreeSet<String>,
}

/// A Felix spoke: `h + sigmoid(b) / S * sum_s W_up[s] silu(W_down[s] norm(h))` after each of its
/// blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FelixFacts {
    /// Number S of bottlenecks in a layer.
    pub spokes: u32,
    /// Rank r of each.
    pub rank: u32,
    /// Epsilon of the norm, if recorded; otherwise the post's is used.
    pub eps: Option<f32>,
    /// Whether the norm has learned weights.
    pub learned_norm: bool,
}

/// Norms of a spoke's weights in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerNorms {
    /// The block; `None` for the embedding and the output matrix.
    pub layer: Option<u32>,
    /// Frobenius norm of the input matrices: A, or W_down.
    pub down: f64,
    /// Frobenius norm of the output matrices with their scale: scale B, or sigmoid(b) / S W_up. 0
    /// means no effect.
    pub up: f64,
}
