//! Cross-entropy of a linear head, fused: logits exist only for a chunk of rows, and gradients are made along with them.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::collect::hand_over;
use super::{Matrix, floats, lanes};

/// Most rows whose logits exist at a time.
const MOST_ROWS: usize = 512;
/// Most logits that exist at a time (128 MiB): what bounds the rows where the vocabulary is large.
const MOST_LOGITS: usize = 1 << 25;

/// Rows whose logits exist at a time; fewer than 32 would make poor matrix products.
fn chunk_rows(vocab: usize) -> usize {
    (MOST_LOGITS / vocab.max(1)).clamp(32, MOST_ROWS)
}

/// What the head said about the target tokens.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    /// Scaled sum of the losses in nats, a scalar with a gradient.
    pub loss: Tensor,
    /// Whether the likeliest token was the target, per row.
    pub hits: Vec<bool>,
}

struct LinearCrossEntropy {
    targets: Vec<u32>,
    scale: f32,
    cap: Option<f32>,
    with_gradient: bool,
    /// Whether the head needs a gradient too; a frozen one saves a third of the work.
    head_gradient: bool,
    hits: Arc<Mutex<Vec<bool>>>,
    /// Gradients of hidden rows and head for a loss gradient of 1.
    gradients: Mutex<Option<(Vec<f32>, Vec<f32>)>>,
}

/// `scale * sum of -log softmax(hidden head^T)[target]` for hidden `[rows, D]` and head `[V, D]`, one target a row. With a
/// `cap` c, a logit l counts as `c tanh(l / c)`.
///
/// With `with_gradient`, the forward pass also makes both gradients (three products a chunk, none of them twice); without
/// it, a backward pass is an error.
///
/// # Errors
/// Shapes that do not agree, a target outside the vocabulary, operands that are not f32 in CPU memory.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    head: &Tensor,
    targets: Vec<u32>,
    scale: f32,
    cap: Option<f32>,
    with_gradient: bool,
) -> Result<CrossEntropy> {
    let hits = Arc::new(Mutex::new(Vec::with_capacity(targets.len())));
    let gradients = Mutex::new(None);
    let head_gradient = head.track_op();
    let op = LinearCrossEntropy {
        targets,
        scale,
        cap,
        with_gradient,
        head_gradient,
        hits: hits.clone(),
        gradients,
    };
    let loss = hidden.contiguous()?.apply_op2(&head.contiguous()?, op)?;
    let hits = std::mem::take(&mut *hits.lock().expect("no thread panics while it holds the lock"));
    Ok(CrossEntropy { loss, hits })
}

/// Turns a row of logits into `scale (softmax - onehot(target))`; gives the loss and whether the target was the likeliest.
fn row_loss(row: &mut [f32], target: usize, scale: f32) -> (f64, bool) {
    let top = lanes::max(row);
    let at_target = row[target];
    for value in row.iter_mut() {
        *value = lanes::exp(*value - top);
    }
    let sum = lanes::sum(row);
    let factor = scale / sum;
    for value in row.iter_mut() {
        *value *= factor;
    }
    row[target] -= scale;
    (f64::from(sum.ln() + top - at_target), at_target >= top)
}

/// As [`row_loss`], of logits that a cap bends first: what is left in the row is the gradient of the unbent logits.
fn capped_row_loss(row: &mut [f32], target: usize, scale: f32, cap: f32) -> (f64, bool) {
    let bent: Vec<f32> = row.iter().map(|&logit| lanes::tanh(logit / cap)).collect();
    for (logit, bent) in row.iter_mut().zip(&bent) {
        *logit = cap * bent;
    }
    let result = row_loss(row, target, scale);
    for (gradient, bent) in row.iter_mut().zip(&bent) {
        *gradient *= 1.0 - bent * bent;
    }
    result
}

impl CustomOp2 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        head: &CpuStorage,
        head_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        floats(hidden, hidden_layout, self.name())?;
        floats(head, head_layout, self.name())?;
        let (&[rows, width], &[vocab, head_width]) = (hidden_layout.dims(), head_layout.dims()) else {
            candle_core::bail!(
                "linear-cross-entropy: {hidden_layout:?} and {head_layout:?} are not matrices"
            );
        };
        if rows != self.targets.len() || width != head_width {
            candle_core::bail!(
                "linear-cross-entropy: hidden [{rows}, {width}], head [{vocab}, {head_width}], {} targets",
                self.targets.len()
            );
        }
        if let Some(target) = self.targets.iter().find(|&&t| t as usize >= vocab) {
            candle_core::bail!("linear-cross-entropy: target {target}, the vocabulary has {vocab} entries");
        }
        let weight = Matrix::dense(head, head_layout.start_offset(), vocab, width);
        let mut total = 0.0;
        let mut hits = self.hits.lock().expect("no thread panics while it holds the lock");
        let mut d_hidden = Vec::with_capacity(rows * width);
        let mut d_head = vec![];
        let chunk = chunk_rows(vocab);
        for (index, targets) in self.targets.chunks(chunk).enumerate() {
            let offset = hidden_layout.start_offset() + index * chunk * width;
            let x = Matrix::dense(hidden, offset, targets.len(), width);
            let mut logits = x.matmul(&weight.t())?; // [chunk, V]
            let results: Vec<(f64, bool)> = logits
                .par_chunks_mut(vocab)
                .zip(targets)
                .with_min_len(16)
                .map(|(row, &target)| match self.cap {
                    None => row_loss(row, target as usize, self.scale),
                    Some(cap) => capped_row_loss(row, target as usize, self.scale, cap),
                })
                .collect();
            total += results.iter().map(|(loss, _)| loss).sum::<f64>();
            hits.extend(results.iter().map(|&(_, hit)| hit));
            if self.with_gradient {
                let d_logits = CpuStorage::F32(logits);
                let d_logits = Matrix::dense(&d_logits, 0, targets.len(), vocab);
                d_hidden.extend(d_logits.matmul(&weight)?);
                if self.head_gradient {
                    let part = d_logits.t().matmul(&x)?;
                    if d_head.is_empty() { d_head = part } else { lanes::add(&mut d_head, &part) }
                }
            }
        }
        if self.with_gradient {
            if self.head_gradient {
                d_head.resize(vocab * width, 0.0); // no rows: no part
            }
            *self.gradients.lock().expect("no thread panics while it holds the lock") =
                Some((d_hidden, d_head));
        }
        Ok((CpuStorage::F32(vec![(total * f64::from(self.scale)) as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let taken = self.gradients.lock().expect("no thread panics while it holds the lock").take();
        let Some((mut d_hidden, mut d_head)) = taken else {
            candle_core::bail!(
                "linear-cross-entropy: no gradients: with_gradient is false, or backward ran before"
            );
        };
        let grad = grad.to_scalar::<f32>()?;
        #[allow(clippy::float_cmp)] // 1 is what `Tensor::backward` starts from, exactly
        if grad != 1.0 {
            d_hidden.iter_mut().chain(&mut d_head).for_each(|value| *value *= grad);
        }
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        let d_hidden = Some(tensor(d_hidden, hidden)?);
        if !self.head_gradient {
            return Ok((d_hidden, None));
        }
        Ok((d_hidden, hand_over(head, tensor(d_head, head)?)?))
    }
}
