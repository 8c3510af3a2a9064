//! Cross-entropy of a linear head, fused.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::fused_linear_loss::{FusedLinearLoss, soft_cap};
use super::{composite, lanes};

/// The loss of the head at the target tokens.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    /// Scaled sum of the losses in nats, a scalar with a gradient.
    pub loss: Tensor,
    /// Whether the most likely token was the target, per row.
    pub hits: Vec<bool>,
}

struct LinearCrossEntropy {
    head: FusedLinearLoss,
    scale: f32,
    cap: Option<f32>,
    hits: Arc<Mutex<Vec<bool>>>,
}

/// `scale * sum of -log softmax(hidden head^T)[target]` for hidden `[rows, D]` and head `[V, D]`,
/// one target a row. With a `cap` c, a logit l counts as `c tanh(l / c)`.
///
/// Without `with_gradient`, a backward pass is an error.
///
/// # Errors
/// Shapes that do not agree, a target outside the vocabulary, operands of different types or
/// devices.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    head: &Tensor,
    targets: Vec<u32>,
    scale: f32,
    cap: Option<f32>,
    with_gradient: bool,
) -> Result<CrossEntropy> {
    if composite::is_needed(hidden) {
        let how = (composite::rows_at_once(head), with_gradient);
        return composite::cross_entropy(hidden, head, &targets, scale, cap, how);
    }
    let hits = Arc::new(Mutex::new(Vec::with_capacity(targets.len())));
    let op = LinearCrossEntropy {
        head: FusedLinearLoss::new("linear-cross-entropy", head, targets, with_gradient),
        scale,
        cap,
        hits: hits.clone(),
    };
    let loss = hidden.contiguous()?.apply_op2(&head.contiguous()?, op)?;
    let hits = std::mem::take(&mut *hits.lock().expect("no thread panics while it holds the lock"));
    Ok(CrossEntropy { loss, hits })
}

/// Turns a row of logits into `scale (softmax - onehot(target))`; returns the loss and whether the
/// target was the most likely token.
fn row_loss(row: &mut [f32], target: usize, scale: f32) -> (f64, bool) {
    let top = lanes::max(row);
    let at_target = row[target];
    lanes::vectorised(|| {
        for value in row.iter_mut() {
            *value = lanes::exp(*value - top);
        }
    });
    let sum = lanes::sum(row);
    let factor = scale / sum;
    for value in row.iter_mut() {
        *value *= factor;
    }
    row[target] -= scale;
    (f64::from(sum.ln() + top - at_target), at_target >= top)
}

/// As [`row_loss`] with a soft cap: the row becomes the gradient with respect to the uncapped
/// logits.
fn capped_row_loss(row: &mut [f32], target: usize, scale: f32, cap: f32) -> (f64, bool) {
    let slopes = soft_cap(row, cap);
    let result = row_loss(row, target, scale);
    for (gradient, slope) in row.iter_mut().zip(&slopes) {
        *gradient *= slope;
    }
    result
}

impl CustomOp2 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        self.head.op
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        head: &CpuStorage,
        head_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut total = 0.0;
        let mut hits = self.hits.lock().expect("no thread panics while it holds the lock");
        self.head.forward((hidden, hidden_layout), (head, head_layout), |_, targets, logits| {
            let results: Vec<(f64, bool)> = logits
                .par_chunks_mut(logits.len() / targets.len())
                .zip(targets)
                .with_min_len(16)
                .map(|(row, &target)| match self.cap {
                    None => row_loss(row, target as usize, self.scale),
                    Some(cap) => capped_row_loss(row, target as usize, self.scale, cap),
                })
                .collect();
            total += results.iter().map(|(loss, _)| loss).sum::<f64>();
            hits.extend(results.iter().map(|&(_, hit)| hit));
            Ok(())
        })?;
        Ok((CpuStorage::F32(vec![(total * f64::from(self.scale)) as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.head.backward(hidden, head, grad)
    }
}
