//! Distillation through a linear head, fused: cross-entropy with the data and divergence from a
//! teacher in one pass over the logits.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::fused_linear_loss::{FusedLinearLoss, soft_cap};
use super::{composite, lanes};

/// What a teacher predicts for one row.
#[derive(Debug, Clone, Copy)]
pub enum TeacherOutput<'a> {
    /// All logits, `[V]`. V may differ from the student's if one embedding is padded; both
    /// distributions are then over the entries that both have.
    Logits(&'a [f32]),
    /// The most likely tokens with their probabilities at the temperature, and the total
    /// probability of all others.
    Top {
        /// Distinct tokens.
        ids: &'a [u32],
        /// One per token.
        probabilities: &'a [f32],
        /// The rest of 1.
        tail: f32,
    },
}

/// The predictions of a teacher for many rows.
pub trait TeacherSource: Send + Sync {
    /// Passes rows `from..from + count` to `see`, in order, numbered from 0.
    ///
    /// # Errors
    /// The teacher's.
    fn rows(
        &self,
        from: usize,
        count: usize,
        see: &mut dyn FnMut(usize, TeacherOutput) -> Result<()>,
    ) -> Result<()>;

    /// All logits `[count, V]` of these rows as one tensor, if the teacher has them, so that they
    /// can stay on its device.
    ///
    /// # Errors
    /// The teacher's.
    fn logits(&self, _from: usize, _count: usize) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

/// How the two losses are weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Factor of the sum over rows.
    pub scale: f32,
    /// Weight of the cross-entropy.
    pub cross_entropy: f32,
    /// Weight of the divergence, which is also multiplied by the square of the temperature (Hinton
    /// et al. 2015).
    pub divergence: f32,
    /// Temperature tau of both distributions in the divergence.
    pub temperature: f32,
    /// Soft cap of the student's logits.
    pub cap: Option<f32>,
}

/// The result.
#[derive(Debug, Clone)]
pub struct Distillation {
    /// `scale` times the weighted sum of both losses, a scalar with a gradient.
    pub loss: Tensor,
    /// `scale` times the sum of the cross-entropies.
    pub cross_entropy: f64,
    /// `scale` times the sum of `tau^2 KL(teacher ‖ student)`.
    pub divergence: f64,
    /// Whether the most likely token was the target, per row.
    pub hits: Vec<bool>,
}

#[derive(Default)]
struct Seen {
    cross_entropy: f64,
    divergence: f64,
    hits: Vec<bool>,
}

struct Op {
    head: FusedLinearLoss,
    teacher: Arc<dyn TeacherSource>,
    weights: Weights,
    seen: Arc<Mutex<Seen>>,
}

/// The losses of hidden `[rows, D]` through a head `[V, D]`: `-ln softmax(l)[target]` and
/// `tau^2 KL(p ‖ softmax(l / tau))`, p the teacher's distribution at tau. If the teacher names
/// only its most likely tokens, all others count as one token for both models: KL = sum p ln(p / q)
/// + tail ln(tail / q_tail).
///
/// # Errors
/// As [`super::linear_cross_entropy`]; tokens of the teacher outside the student's vocabulary.
pub fn distillation(
    hidden: &Tensor,
    head: &Tensor,
    targets: Vec<u32>,
    teacher: Arc<dyn TeacherSource>,
    weights: Weights,
    with_gradient: bool,
) -> Result<Distillation> {
    if composite::is_needed(hidden) {
        let how = (composite::rows_at_once(head), with_gradient);
        return composite::distillation(hidden, head, &targets, &*teacher, weights, how);
    }
    let seen = Arc::new(Mutex::new(Seen::default()));
    let linear = FusedLinearLoss::new("distillation", head, targets, with_gradient);
    let op = Op { head: linear, teacher, weights, seen: seen.clone() };
    let loss = hidden.contiguous()?.apply_op2(&head.contiguous()?, op)?;
    let seen = std::mem::take(&mut *seen.lock().expect("no thread panics while it holds the lock"));
    let scale = f64::from(weights.scale);
    Ok(Distillation {
        loss,
        cross_entropy: seen.cross_entropy * scale,
        divergence: seen.divergence * scale,
        hits: seen.hits,
    })
}

/// Softmax of `logits / tau` in place; returns the logarithm of its normaliser without the largest
/// logit, and that logit.
fn softmax(logits: &mut [f32], inverse_tau: f32) -> (f32, f32) {
    let top = lanes::max(logits);
    lanes::vectorised(|| {
        for value in logits.iter_mut() {
            *value = lanes::exp((*value - top) * inverse_tau);
        }
    });
    let sum = lanes::sum(logits);
    let inverse = 1.0 / sum;
    for value in logits.iter_mut() {
        *value *= inverse;
    }
    (sum.ln(), top)
}

/// `p ln(p / q)`, 0 where p is 0. A q that underflows counts as the smallest number.
fn relative(p: f32, q: f32) -> f64 {
    if p > 0.0 { f64::from(p) * (f64::from(p).ln() - f64::from(q.max(f32::MIN_POSITIVE)).ln()) } else { 0.0 }
}

impl Op {
    /// KL(p ‖ q), where q is the student's distribution at the temperature; q becomes q - p, the
    /// gradient with respect to the logits divided by the temperature.
    fn diverge(&self, q: &mut [f32], taught: TeacherOutput) -> Result<f64> {
        match taught {
            TeacherOutput::Logits(logits) => {
                // Beyond the tokens that both have there is only padding of the embedding, which
                // stands for no token.
                let common = logits.len().min(q.len());
                let (q, padding) = q.split_at_mut(common);
                if !padding.is_empty() {
                    padding.fill(0.0);
                    let inverse = 1.0 / lanes::sum(q).max(f32::MIN_POSITIVE);
                    for value in q.iter_mut() {
                        *value *= inverse;
                    }
                }
                let mut p = logits[..common].to_vec();
                softmax(&mut p, 1.0 / self.weights.temperature);
                let sum = p.iter().zip(q.iter()).map(|(&p, &q)| relative(p, q)).sum();
                for (q, p) in q.iter_mut().zip(&p) {
                    *q -= p;
                }
                Ok(sum)
            }
            TeacherOutput::Top { ids, probabilities, tail } => {
                let mut sum = 0.0;
                // Removed before the rest is summed, because 1 minus a sum near 1 would be noise.
                let mut of_top = Vec::with_capacity(ids.len());
                for &id in ids {
                    let Some(q) = q.get_mut(id as usize) else {
                        candle_core::bail!(
                            "distillation: token {id} of a teacher, the student has {} entries",
                            q.len()
                        );
                    };
                    of_top.push(std::mem::take(q));
                }
                let q_tail = lanes::sum(q);
                sum += relative(tail, q_tail);
                // In the tail: q_j - tail q_j / q_tail.
                let keep = 1.0 - tail / q_tail.max(f32::MIN_POSITIVE);
                for value in q.iter_mut() {
                    *value *= keep;
                }
                for ((&id, &p), of_top) in ids.iter().zip(probabilities).zip(of_top) {
                    sum += relative(p, of_top);
                    q[id as usize] = of_top - p;
                }
                Ok(sum)
            }
        }
    }

    /// Turns a row of logits into the gradient of both losses; adds the losses to `seen`.
    fn row(&self, row: &mut [f32], target: usize, taught: TeacherOutput, seen: &mut Seen) -> Result<()> {
        let Weights { scale, cross_entropy, divergence, temperature, cap } = self.weights;
        let slopes = cap.map(|cap| soft_cap(row, cap));
        let at_target = row[target];
        let mut q = row.to_vec();
        let (log_sum, top) = softmax(row, 1.0);
        seen.cross_entropy += f64::from(log_sum + top - at_target);
        seen.hits.push(at_target >= top);
        row[target] -= 1.0;
        softmax(&mut q, 1.0 / temperature);
        seen.divergence += f64::from(temperature * temperature) * self.diverge(&mut q, taught)?;
        // d(tau^2 KL)/dl = tau (q - p).
        for (gradient, q) in row.iter_mut().zip(&q) {
            *gradient = scale * (cross_entropy * *gradient + divergence * temperature * q);
        }
        if let Some(slopes) = slopes {
            for (gradient, slope) in row.iter_mut().zip(&slopes) {
                *gradient *= slope;
            }
        }
        Ok(())
    }
}

impl CustomOp2 for Op {
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
        let mut seen = self.seen.lock().expect("no thread panics while it holds the lock");
        self.head.forward((hidden, hidden_layout), (head, head_layout), |first, targets, logits| {
            let vocab = logits.len() / targets.len();
            self.teacher.rows(first, targets.len(), &mut |at, taught| {
                let row = &mut logits[at * vocab..(at + 1) * vocab];
                self.row(row, targets[at] as usize, taught, &mut seen)
            })
        })?;
        let Weights { scale, cross_entropy, divergence, .. } = self.weights;
        let total = f64::from(cross_entropy) * seen.cross_entropy + f64::from(divergence) * seen.divergence;
        Ok((CpuStorage::F32(vec![(total * f64::from(scale)) as f32]), Shape::from(())))
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use std::collections::HashMap;

    /// Reference values of PyTorch (`tests/tools/distillation_reference.py`).
    fn fixture() -> HashMap<String, Tensor> {
        let bytes = include_bytes!("../../../tests/fixtures/train/distillation.safetensors");
        candle_core::safetensors::load_buffer(bytes, &Device::Cpu).unwrap()
    }

    struct Dense(Vec<f32>, usize);

    impl TeacherSource for Dense {
        fn rows(
            &self,
            from: usize,
            count: usize,
            see: &mut dyn FnMut(usize, TeacherOutput) -> Result<()>,
        ) -> Result<()> {
            let rows = self.0.chunks(self.1).skip(from).take(count).enumerate();
            rows.into_iter().try_for_each(|(at, logits)| see(at, TeacherOutput::Logits(logits)))
        }
    }

    struct Tops(Vec<(Vec<u32>, Vec<f32>, f32)>);

    impl TeacherSource for Tops {
        fn rows(
            &self,
            from: usize,
            count: usize,
            see: &mut dyn FnMut(usize, TeacherOutput) -> Result<()>,
        ) -> Result<()> {
            self.0[from..from + count].iter().enumerate().try_for_each(|(at, (ids, probabilities, tail))| {
                see(at, TeacherOutput::Top { ids, probabilities, tail: *tail })
            })
        }
    }

    fn compare(prefix: &str, teacher: Arc<dyn TeacherSource>, cap: Option<f32>) {
        let fixture = fixture();
        let [hidden, head] = ["hidden", "head"].map(|name| Var::from_tensor(&fixture[name]).unwrap());
        let targets = fixture["targets"].to_vec1::<u32>().unwrap();
        let weights = Weights { scale: 0.25, cross_entropy: 0.3, divergence: 0.9, temperature: 1.7, cap };
        let found =
            distillation(hidden.as_tensor(), head.as_tensor(), targets, teacher, weights, true).unwrap();
        let number = |name: &str| {
            let tensor = fixture[&format!("{prefix}.{name}")].flatten_all().unwrap();
            f64::from(tensor.to_vec1::<f32>().unwrap()[0])
        };
        for (name, value) in [("cross_entropy", found.cross_entropy), ("divergence", found.divergence)] {
            let expected = number(name);
            assert!(
                (value - expected).abs() < 2e-6 * expected.abs().max(1.0),
                "{prefix}.{name}: {value}, expected {expected}"
            );
        }
        let gradients = found.loss.backward().unwrap();
        for (name, var) in [("hidden", &hidden), ("head", &head)] {
            let expected = &fixture[&format!("{prefix}.d_{name}")];
            let apart = (gradients.get(var).unwrap() - expected).unwrap().abs().unwrap().max_all().unwrap();
            let size = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let apart = apart.to_scalar::<f32>().unwrap();
            assert!(apart < 1e-5 * size, "{prefix}.d_{name}: {apart} apart, values up to {size}");
        }
    }

    fn dense() -> Arc<dyn TeacherSource> {
        let logits = fixture()["teacher_logits"].clone();
        let vocab = logits.dim(1).unwrap();
        Arc::new(Dense(logits.flatten_all().unwrap().to_vec1().unwrap(), vocab))
    }

    #[test]
    fn losses_and_gradients_are_pytorchs() {
        compare("dense", dense(), None);
        compare("capped", dense(), Some(5.0));
    }

    #[test]
    fn the_likeliest_tokens_and_a_tail_are_pytorchs_too() {
        let fixture = fixture();
        let ids = fixture["top_ids"].to_vec2::<u32>().unwrap();
        let probabilities = fixture["top_probabilities"].to_vec2::<f32>().unwrap();
        let tails = fixture["top_tail"].to_vec1::<f32>().unwrap();
        let tops = ids.into_iter().zip(probabilities).zip(tails).map(|((ids, p), tail)| (ids, p, tail));
        compare("top", Arc::new(Tops(tops.collect())), None);
    }

    #[test]
    fn a_student_that_is_its_teacher_diverges_by_nothing() {
        let fixture = fixture();
        let (hidden, head) = (&fixture["hidden"], &fixture["head"]);
        let logits = super::super::linear(hidden, head).unwrap();
        let vocab = logits.dim(1).unwrap();
        let teacher = Arc::new(Dense(logits.flatten_all().unwrap().to_vec1().unwrap(), vocab));
        let targets = fixture["targets"].to_vec1::<u32>().unwrap();
        let weights =
            Weights { scale: 1.0, cross_entropy: 0.0, divergence: 1.0, temperature: 2.0, cap: None };
        let found = distillation(hidden, head, targets.clone(), teacher, weights, false).unwrap();
        assert!(found.divergence.abs() < 1e-5, "{}", found.divergence);
    }

    #[test]
    fn padding_of_either_vocabulary_counts_for_nothing() {
        let fixture = fixture();
        let head = &fixture["head"];
        let logits = super::super::linear(&fixture["hidden"], head).unwrap();
        let (rows, vocab) = logits.dims2().unwrap();
        let own: Vec<Vec<f32>> = logits.to_vec2().unwrap();
        let targets = vec![0; rows];
        let weights =
            Weights { scale: 1.0, cross_entropy: 0.0, divergence: 1.0, temperature: 2.0, cap: None };
        // The same distribution followed by padding with large logits, and without the student's
        // last entries.
        for width in [vocab + 3, vocab - 2] {
            let row = |row: &Vec<f32>| {
                let mut row = row.clone();
                row.resize(width, 9.0);
                row
            };
            let teacher = Arc::new(Dense(own.iter().flat_map(row).collect(), width));
            let hidden = Var::from_tensor(&fixture["hidden"]).unwrap();
            let found =
                distillation(hidden.as_tensor(), head, targets.clone(), teacher, weights, true).unwrap();
            assert!(found.divergence.abs() < 1e-5, "{width}: {}", found.divergence);
            let gradients = found.loss.backward().unwrap();
            let most = gradients.get(&hidden).unwrap().abs().unwrap().max_all().unwrap();
            assert!(most.to_scalar::<f32>().unwrap() < 1e-5, "{width}: {most}");
        }
    }
}
