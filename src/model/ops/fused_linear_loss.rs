//! What losses of a linear head share: logits exist only for a chunk of rows, and gradients are
//! computed along with them.

use std::sync::Mutex;

use candle_core::{CpuStorage, Layout, Result, Tensor};

use super::grad_sink::hand_over;
use super::{Matrix, floats, lanes};

/// Most rows whose logits exist at a time.
const MOST_ROWS: usize = 512;
/// Most logits that exist at a time (128 MiB); this bounds the rows for large vocabularies.
const MOST_LOGITS: usize = 1 << 25;

/// Rows whose logits exist at a time; fewer than 32 would make poor matrix products.
fn chunk_rows(vocab: usize) -> usize {
    (MOST_LOGITS / vocab.max(1)).clamp(32, MOST_ROWS)
}

/// A head `[V, D]` after hidden `[rows, D]`, with one target per row.
pub(super) struct FusedLinearLoss {
    pub(super) op: &'static str,
    targets: Vec<u32>,
    with_gradient: bool,
    /// Whether the head needs a gradient too; a frozen head saves a third of the work.
    head_gradient: bool,
    /// Gradients of the hidden rows and the head for a loss gradient of 1.
    gradients: Mutex<Option<(Vec<f32>, Vec<f32>)>>,
}

impl FusedLinearLoss {
    /// For an operation of this name. With `with_gradient`, the forward pass also computes both
    /// gradients (three products per chunk, none of them twice); without it, a backward pass is an
    /// error.
    pub(super) fn new(op: &'static str, head: &Tensor, targets: Vec<u32>, with_gradient: bool) -> Self {
        Self { op, targets, with_gradient, head_gradient: head.track_op(), gradients: Mutex::new(None) }
    }

    /// Passes `see` the logits `[rows, V]` of some rows at a time, with the number of the first
    /// row and the targets. `see` replaces them by the gradient of the loss with respect to them.
    ///
    /// # Errors
    /// Shapes that do not agree, a target outside the vocabulary, operands that are not f32; those
    /// of `see`.
    pub(super) fn forward(
        &self,
        (hidden, hidden_layout): (&CpuStorage, &Layout),
        (head, head_layout): (&CpuStorage, &Layout),
        mut see: impl FnMut(usize, &[u32], &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let op = self.op;
        floats(hidden, hidden_layout, op)?;
        floats(head, head_layout, op)?;
        let [rows, vocab, width] = check(op, hidden_layout.dims(), head_layout.dims(), &self.targets)?;
        let weight = Matrix::dense(head, head_layout.start_offset(), vocab, width);
        let (mut d_hidden, mut d_head) = (Vec::with_capacity(rows * width), vec![]);
        let chunk = chunk_rows(vocab);
        for (index, targets) in self.targets.chunks(chunk).enumerate() {
            let offset = hidden_layout.start_offset() + index * chunk * width;
            let x = Matrix::dense(hidden, offset, targets.len(), width);
            let mut logits = x.matmul(&weight.t())?; // [chunk, V]
            see(index * chunk, targets, &mut logits)?;
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
        Ok(())
    }

    /// Gradients of the hidden rows and the head, given the gradient of the loss, a scalar.
    ///
    /// # Errors
    /// A forward pass without gradients.
    pub(super) fn backward(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let taken = self.gradients.lock().expect("no thread panics while it holds the lock").take();
        let Some((mut d_hidden, mut d_head)) = taken else {
            return Err(no_gradients(self.op));
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

/// Rows, vocabulary size and width of hidden `[rows, D]`, a head `[V, D]` and one target per row.
///
/// # Errors
/// Shapes that do not agree, a target outside the vocabulary.
pub(super) fn check(op: &str, hidden: &[usize], head: &[usize], targets: &[u32]) -> Result<[usize; 3]> {
    let (&[rows, width], &[vocab, head_width]) = (hidden, head) else {
        candle_core::bail!("{op}: {hidden:?} and {head:?} are not matrices");
    };
    if rows != targets.len() || width != head_width {
        let targets = targets.len();
        candle_core::bail!("{op}: hidden [{rows}, {width}], head [{vocab}, {head_width}], {targets} targets");
    }
    if let Some(target) = targets.iter().find(|&&t| t as usize >= vocab) {
        candle_core::bail!("{op}: target {target}, the vocabulary has {vocab} entries");
    }
    Ok([rows, vocab, width])
}

/// The error of a backward pass without gradients.
pub(super) fn no_gradients(op: &str) -> candle_core::Error {
    let message = format!("{op}: no gradients: with_gradient is false, or backward ran before");
    candle_core::Error::Msg(message)
}

/// Applies a soft cap c to logits, `c tanh(l / c)`; returns the slope at each.
pub(super) fn soft_cap(logits: &mut [f32], cap: f32) -> Vec<f32> {
    let one = |logit: &mut f32| {
        let bent = lanes::tanh(*logit / cap);
        *logit = cap * bent;
        1.0 - bent * bent
    };
    logits.iter_mut().map(one).collect()
}
