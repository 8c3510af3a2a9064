//! The same operations composed of Candle's tensor operations, for tensors that the fused ones
//! can't read: those on a GPU, and bf16 anywhere.
//!
//! Activations are f32 or bf16 (the result has the type of the first operand), weights f32 or that
//! type. Sums over many values and exponentials are computed in f32.

mod attention;
mod delta_rule;
mod elementwise;
mod losses;
mod norm;
mod short_convolution;

pub(super) use attention::attention;
#[cfg(test)]
pub(super) use attention::{Blocks, in_blocks as attention_in};
pub(super) use delta_rule::delta_rule;
pub(super) use elementwise::{decay, gated_update, geglu, low_rank, sigmoid_gate, silu, swiglu};
pub(super) use losses::{cross_entropy, distillation, rows_at_once};
pub(super) use norm::{rms_norm, rotary};
pub(super) use short_convolution::short_convolution;

use candle_core::{DType, Device, Result, Tensor};

use crate::model::layout::BatchLayout;

/// Whether the composite form is needed because the fused operations can't read a tensor. Every
/// operation asks this one question.
pub(super) fn is_needed(x: &Tensor) -> bool {
    !x.device().is_cpu() || x.dtype() != DType::F32
}

fn f32(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// For each token of a batch `[B, S]`, the first token of its row that belongs to the same
/// document; S for padding.
fn document_starts(layout: &BatchLayout) -> Vec<u32> {
    let seq = layout.seq();
    let mut starts = vec![seq as u32; layout.batch() * seq];
    for document in layout.documents().iter() {
        let from = document.row * seq + document.start;
        starts[from..from + document.len].fill(document.start as u32);
    }
    starts
}

/// 1 for tokens of documents and 0 for padding, `[B, S, 1]` in f32.
fn inside(starts: &[u32], layout: &BatchLayout, device: &Device) -> Result<Tensor> {
    let (batch, seq) = (layout.batch(), layout.seq());
    let inside: Vec<f32> = starts.iter().map(|&start| f32::from(u8::from((start as usize) < seq))).collect();
    Tensor::from_vec(inside, (batch, seq, 1), device)
}
