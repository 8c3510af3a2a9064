//! Losses of a linear head in tensor operations. As in the fused form, logits exist only for a
//! chunk of rows, and gradients are computed along with them.

use std::sync::{Mutex, PoisonError};

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::super::cross_entropy::CrossEntropy;
use super::super::custom_grad::custom_grad2;
use super::super::distillation::{Distillation, TeacherOutput, TeacherSource, Weights};
use super::super::fused_linear_loss::{check, no_gradients};
use super::super::grad_sink::hand_over;
use super::f32;

/// Most logits that exist at a time (512 MiB in f32): more than in the fused form, because GPUs
/// need larger products.
const MOST_LOGITS: usize = 1 << 27;
/// More rows don't make a product faster.
const MOST_ROWS: usize = 4096;

/// Rows whose logits exist at a time.
pub(in super::super) fn rows_at_once(head: &Tensor) -> usize {
    (MOST_LOGITS / head.dims()[0].max(1)).clamp(32, MOST_ROWS)
}

/// The loss of some rows.
struct Judged {
    /// Sum of their losses, scaled.
    loss: f64,
    /// Its gradient with respect to their logits, f32.
    d_logits: Tensor,
}

/// The loss, a scalar in f32, of hidden `[rows, D]` through a head `[V, D]`. `judge` gets the
/// logits `[rows, V]` of `at_once` rows at a time, in f32, with the number of the first row and the
/// targets `[rows, 1]`.
fn through_head(
    op: &'static str,
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    (at_once, with_gradient): (usize, bool),
    mut judge: impl FnMut(usize, Tensor, Tensor) -> Result<Judged>,
) -> Result<Tensor> {
    check(op, hidden.dims(), head.dims(), targets)?;
    let (x, of_head) = (hidden.detach().contiguous()?, head.track_op());
    let weight = head.detach().to_dtype(x.dtype())?;
    let (mut total, mut d_hidden, mut d_head) = (0.0, vec![], None::<Tensor>);
    for (index, targets) in targets.chunks(at_once).enumerate() {
        let x = x.narrow(0, index * at_once, targets.len())?;
        let logits = f32(&x.matmul(&weight.t()?)?)?;
        let targets = Tensor::new(targets, x.device())?.unsqueeze(1)?;
        let Judged { loss, d_logits } = judge(index * at_once, logits, targets)?;
        total += loss;
        if with_gradient {
            let d_logits = d_logits.to_dtype(x.dtype())?;
            d_hidden.push(d_logits.matmul(&weight)?);
            if of_head {
                let part = f32(&d_logits.t()?.matmul(&x)?)?;
                d_head = Some(match d_head {
                    None => part,
                    Some(sum) => (sum + part)?,
                });
            }
        }
    }
    let loss = Tensor::new(total as f32, hidden.device())?;
    let gradients = with_gradient.then(|| -> Result<_> {
        // There were no rows.
        let d_hidden = if d_hidden.is_empty() { x.zeros_like()? } else { Tensor::cat(&d_hidden, 0)? };
        let none = || Tensor::zeros(weight.shape(), DType::F32, x.device());
        Ok((d_hidden, of_head.then(|| d_head.map_or_else(none, Ok)).transpose()?))
    });
    let gradients = Mutex::new(gradients.transpose()?);
    let head_itself = head.clone();
    custom_grad2(op, hidden, head, loss, move |grad| {
        let taken = gradients.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((d_hidden, d_head)) = taken else { return Err(no_gradients(op)) };
        let grad = f64::from(grad.to_scalar::<f32>()?);
        #[allow(clippy::float_cmp)] // 1 is what `Tensor::backward` starts from, exactly
        let scaled = |tensor: Tensor| if grad == 1.0 { Ok(tensor) } else { tensor * grad };
        let d_head = match d_head {
            None => None,
            Some(d_head) => hand_over(&head_itself, scaled(d_head)?.to_dtype(head_itself.dtype())?)?,
        };
        Ok([Some(scaled(d_hidden)?), d_head])
    })
}

/// The sum of losses, on the host.
fn sum(values: &Tensor) -> Result<f64> {
    Ok(f64::from(values.sum_all()?.to_scalar::<f32>()?))
}

/// Applies a soft cap to logits, if there is one; returns the slopes too.
fn soft_cap(logits: Tensor, cap: Option<f32>) -> Result<(Tensor, Option<Tensor>)> {
    let Some(cap) = cap.map(f64::from) else { return Ok((logits, None)) };
    let bent = (logits / cap)?.tanh()?;
    let slopes = bent.sqr()?.affine(-1.0, 1.0)?;
    Ok(((bent * cap)?, Some(slopes)))
}

/// Sum of the cross-entropies of rows, `softmax - onehot(target)`, and whether each target was the
/// most likely token.
fn against_targets(logits: &Tensor, targets: &Tensor) -> Result<(f64, Tensor, Vec<bool>)> {
    let top = logits.max_keepdim(D::Minus1)?;
    let at_target = logits.gather(targets, 1)?;
    let powers = logits.broadcast_sub(&top)?.exp()?;
    let sums = powers.sum_keepdim(D::Minus1)?;
    let loss = sum(&((sums.log()? + &top)? - &at_target)?)?;
    let d_logits = powers.broadcast_div(&sums)?;
    d_logits.scatter_add_set(targets, &at_target.zeros_like()?.affine(0.0, -1.0)?, 1)?;
    let hits = at_target.ge(&top)?.flatten_all()?.to_vec1::<u8>()?;
    Ok((loss, d_logits, hits.into_iter().map(|hit| hit == 1).collect()))
}

/// See [`super::super::linear_cross_entropy`].
pub(in super::super) fn cross_entropy(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    scale: f32,
    cap: Option<f32>,
    (at_once, with_gradient): (usize, bool),
) -> Result<CrossEntropy> {
    let mut hits = Vec::with_capacity(targets.len());
    let op = "composite-cross-entropy";
    let loss = through_head(op, hidden, head, targets, (at_once, with_gradient), |_, logits, targets| {
        let (logits, slopes) = soft_cap(logits, cap)?;
        let (loss, mut d_logits, hit) = against_targets(&logits, &targets)?;
        hits.extend(hit);
        if with_gradient {
            d_logits = (d_logits * f64::from(scale))?;
            if let Some(slopes) = slopes {
                d_logits = (d_logits * slopes)?;
            }
        }
        Ok(Judged { loss: loss * f64::from(scale), d_logits })
    })?;
    Ok(CrossEntropy { loss, hits })
}

/// The output of a teacher for some rows.
enum Words {
    /// Logits `[rows, V]`.
    Dense(Tensor),
    /// The most likely tokens, their probabilities, 1 for each token and 0 for padding (all
    /// `[rows, most]`), and the probability of all others `[rows, 1]`.
    Top { ids: Tensor, probabilities: Tensor, real: Tensor, tail: Tensor },
}

impl Words {
    fn of(
        teacher: &dyn TeacherSource,
        from: usize,
        count: usize,
        vocab: usize,
        device: &Device,
    ) -> Result<Self> {
        if let Some(logits) = teacher.logits(from, count)? {
            return Ok(Self::Dense(f32(&logits.to_device(device)?)?));
        }
        let (mut dense, mut tops) = (vec![], vec![]);
        teacher.rows(from, count, &mut |_, taught| {
            match taught {
                TeacherOutput::Logits(row) => dense.extend_from_slice(row),
                TeacherOutput::Top { ids, probabilities, tail } => {
                    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                        candle_core::bail!(
                            "distillation: token {id} of a teacher, the student has {vocab} entries"
                        );
                    }
                    tops.push((ids.to_vec(), probabilities.to_vec(), tail));
                }
            }
            Ok(())
        })?;
        if tops.is_empty() {
            return Ok(Self::Dense(Tensor::from_vec(dense, (count, ()), device)?));
        }
        let most = tops.iter().map(|(ids, ..)| ids.len()).max().unwrap_or(0).max(1);
        let (mut all_ids, mut all, mut real, mut tails) = (vec![], vec![], vec![], vec![]);
        for (mut ids, mut probabilities, tail) in tops {
            real.extend((0..most).map(|at| f32::from(u8::from(at < ids.len()))));
            ids.resize(most, 0);
            probabilities.resize(most, 0.0);
            all_ids.extend(ids);
            all.extend(probabilities);
            tails.push(tail);
        }
        Ok(Self::Top {
            ids: Tensor::from_vec(all_ids, (count, most), device)?,
            probabilities: Tensor::from_vec(all, (count, most), device)?,
            real: Tensor::from_vec(real, (count, most), device)?,
            tail: Tensor::from_vec(tails, (count, 1), device)?,
        })
    }

    /// Sum of KL(teacher ‖ q) for the student's distributions q `[rows, V]`, and the gradient with
    /// respect to the logits divided by the temperature.
    fn diverge(self, q: Tensor, temperature: f64) -> Result<(f64, Tensor)> {
        match self {
            Self::Dense(logits) => {
                // Beyond the tokens that both have there is only padding of the embedding, which
                // stands for no token.
                let (own, theirs) = (q.dim(1)?, logits.dim(1)?);
                let common = own.min(theirs);
                let p = softmax_last_dim(&(logits.narrow(1, 0, common)?.contiguous()? / temperature)?)?;
                let mut q = q.narrow(1, 0, common)?;
                if common < own {
                    q = q.broadcast_div(&q.sum_keepdim(1)?.maximum(f32::MIN_POSITIVE)?)?;
                }
                let loss = sum(&relative(&p, &q)?)?;
                Ok((loss, (q - p)?.pad_with_zeros(1, 0, own - common)?))
            }
            Self::Top { ids, probabilities, real, tail } => {
                let top = (q.gather(&ids, 1)? * real)?;
                // Removed before the rest is summed, because 1 minus a sum near 1 would be noise.
                let rest = q.scatter_add(&ids, &top.neg()?, 1)?;
                let of_tail = rest.sum_keepdim(1)?;
                let loss = sum(&relative(&probabilities, &top)?)? + sum(&relative(&tail, &of_tail)?)?;
                // In the tail: q_j - tail q_j / q_tail.
                let keep = (tail / of_tail.maximum(f32::MIN_POSITIVE)?)?.affine(-1.0, 1.0)?;
                let gradient = rest.broadcast_mul(&keep)?;
                gradient.scatter_add_set(&ids, &(top - probabilities)?, 1)?;
                Ok((loss, gradient))
            }
        }
    }
}

/// `p ln(p / q)`, 0 where p is 0. A q that underflows counts as the smallest number.
fn relative(p: &Tensor, q: &Tensor) -> Result<Tensor> {
    let log = |x: &Tensor| x.maximum(f32::MIN_POSITIVE)?.log();
    p * (log(p)? - log(q)?)?
}

/// See [`super::super::distillation()`].
pub(in super::super) fn distillation(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    teacher: &dyn TeacherSource,
    weights: Weights,
    (at_once, with_gradient): (usize, bool),
) -> Result<Distillation> {
    let Weights { scale, cross_entropy, divergence, temperature, cap } = weights;
    let [scale, of_data, of_teacher, tau] = [scale, cross_entropy, divergence, temperature].map(f64::from);
    let (mut hits, mut apart, mut diverging) = (Vec::with_capacity(targets.len()), 0.0, 0.0);
    let op = "composite-distillation";
    let loss =
        through_head(op, hidden, head, targets, (at_once, with_gradient), |first, logits, targets| {
            let (logits, slopes) = soft_cap(logits, cap)?;
            let (rows, vocab) = logits.dims2()?;
            let (loss, d_data, hit) = against_targets(&logits, &targets)?;
            let words = Words::of(teacher, first, rows, vocab, logits.device())?;
            let (kl, d_teacher) = words.diverge(softmax_last_dim(&(logits / tau)?)?, tau)?;
            hits.extend(hit);
            apart += scale * loss;
            diverging += scale * tau * tau * kl;
            // d(tau^2 KL)/dl = tau (q - p).
            let mut d_logits = ((d_data * (scale * of_data))? + (d_teacher * (scale * of_teacher * tau))?)?;
            if let Some(slopes) = slopes {
                d_logits = (d_logits * slopes)?;
            }
            Ok(Judged { loss: scale * (of_data * loss + of_teacher * tau * tau * kl), d_logits })
        })?;
    Ok(Distillation { loss, cross_entropy: apart, divergence: diverging, hits })
}
