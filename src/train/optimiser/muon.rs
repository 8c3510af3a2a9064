//! Muon (Jordan et al. 2024): the step of a matrix is its momentum, made nearly orthogonal by
//! Newton-Schulz iterations.
//!
//! The variant: Nesterov momentum as an exponential average (`m <- mu m + (1 - mu) g`, step from
//! `mu m + (1 - mu) g`), five iterations of the quintic with coefficients 3.4445, -4.7750, 2.0315,
//! and the step scaled by `sqrt(max(1, rows / columns))` for a weight `[rows, columns]` =
//! `[out, in]`, as in the author's reference implementation.

use candle_core::{DType, Result, Tensor};

use super::{Algorithm, Stride};
use crate::model::ops::matmul;
use crate::train::in_place::blend;

/// Coefficients of the quintic: steep at 0, so that small singular values reach 0.7..1.2 in five
/// iterations.
const QUINTIC: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;

/// Constants of Muon.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MuonConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the momentum.
    pub momentum: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self { lr: 0.02, momentum: 0.95, weight_decay: 0.0 }
    }
}

impl MuonConfig {
    /// The algorithm with these constants.
    pub(super) fn algorithm(&self) -> Algorithm {
        let &Self { momentum, weight_decay, .. } = self;
        Algorithm::Muon { momentum, weight_decay }
    }
}

/// Muon of one matrix.
#[derive(Debug)]
pub(super) struct Muon {
    decay: f64,
    weight_decay: f64,
    /// Type of the iterations.
    iterate_in: DType,
    pub(super) momentum: Tensor,
}

impl Muon {
    /// Zero momentum, of which a step leaves `decay`.
    pub(super) fn new(weight: &Tensor, decay: f64, weight_decay: f64) -> Result<Self> {
        // On a GPU as in the author's implementation: bf16 is precise enough for a direction, and
        // much faster.
        let iterate_in = if weight.device().is_cpu() { DType::F32 } else { DType::BF16 };
        Ok(Self { decay, weight_decay, iterate_in, momentum: weight.zeros_like()? })
    }

    /// Updates the matrix.
    pub(super) fn step(&self, weight: &Tensor, gradient: &Tensor, stride: Stride) -> Result<()> {
        let Stride { rate, direction, .. } = stride;
        blend(&self.momentum, self.decay, 1.0 - self.decay, gradient)?;
        let nesterov = self.momentum.copy()?;
        blend(&nesterov, self.decay, 1.0 - self.decay, gradient)?;
        let step = orthogonalise(&nesterov, self.iterate_in)?;
        let (rows, columns) = weight.dims2()?;
        let scale = (rows as f64 / columns as f64).max(1.0).sqrt();
        blend(weight, 1.0 - rate * self.weight_decay, -rate * direction.sign() * scale, &step)
    }
}

/// A matrix with the singular vectors of `matrix` and all singular values near 1, by iterations in
/// the type `iterate_in`.
fn orthogonalise(matrix: &Tensor, iterate_in: DType) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    let tall = rows > columns;
    // The Gram matrix is taken of the shorter side.
    let mut x = if tall { matrix.t()?.contiguous()? } else { matrix.clone() };
    let norm = x.sqr()?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?.sqrt();
    x = (x / f64::from(norm + 1e-7))?.to_dtype(iterate_in)?;
    let (a, b, c) = QUINTIC;
    for _ in 0..ITERATIONS {
        let gram = matmul(&x, &x.t()?)?;
        let mixed = matmul(&gram, &gram)?;
        blend(&mixed, c, b, &gram)?;
        let next = matmul(&mixed, &x)?;
        blend(&next, 1.0, a, &x)?;
        x = next;
    }
    let x = x.to_dtype(matrix.dtype())?;
    if tall { x.t()?.contiguous() } else { Ok(x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::optimiser::Direction;
    use candle_core::{Device, Var};

    /// The quintic on one singular value, as plain numbers.
    fn iterate(mut s: f64) -> f64 {
        let (a, b, c) = QUINTIC;
        for _ in 0..ITERATIONS {
            s = a * s + b * s.powi(3) + c * s.powi(5);
        }
        s
    }

    #[test]
    fn singular_values_follow_the_quintic_and_vectors_stay() {
        // [[3, 0], [0, 0.5], [0, 0]] has its singular vectors along the axes.
        let norm = 9.25f64.sqrt();
        let expected = [iterate(3.0 / norm), 0.0, 0.0, iterate(0.5 / norm), 0.0, 0.0];
        let tall = Tensor::new(&[[3.0f32, 0.0], [0.0, 0.5], [0.0, 0.0]], &Device::Cpu).unwrap();
        let found =
            orthogonalise(&tall, DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{found}, expected {expected}");
        }
        let wide = orthogonalise(&tall.t().unwrap().contiguous().unwrap(), DType::F32).unwrap();
        let back = wide.t().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found, back);
        // In bf16, as on a GPU: the iterations are steep, so rounding errors grow from one to the
        // next.
        let half =
            orthogonalise(&tall, DType::BF16).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (half, found) in half.iter().zip(found) {
            assert!((half - found).abs() < 6e-2, "{half}, expected {found}");
        }
    }

    #[test]
    fn a_step_is_scaled_by_the_shape_and_uses_nesterov_momentum() {
        let weight = Var::zeros((4, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let muon = Muon::new(&weight, 0.95, 0.0).unwrap();
        let stride = Stride { rate: 0.01, direction: Direction::Descend, step: 1 };
        let gradient = |values: [f32; 4]| Tensor::from_slice(&values, (4, 1), &Device::Cpu).unwrap();
        // A column is its own singular vector: step = lr * sqrt(4) * quintic(1) * direction.
        muon.step(&weight, &gradient([0.0, 2.0, 0.0, 0.0]), stride).unwrap();
        let size = 0.01 * 2.0 * iterate(1.0);
        let found = |at: usize| f64::from(weight.flatten_all().unwrap().to_vec1::<f32>().unwrap()[at]);
        assert!((found(1) + size).abs() < 1e-5 && found(0).abs() < 1e-9, "{} {size}", found(1));
        // Then m = 0.95 * 0.1 e1 + 0.05 e0, direction 0.95 m + 0.05 e0 = 0.0975 e0 + 0.09025 e1.
        muon.step(&weight, &gradient([1.0, 0.0, 0.0, 0.0]), stride).unwrap();
        let share = 0.0975 / 0.0975f64.hypot(0.09025);
        assert!((found(0) + size * share).abs() < 1e-5, "{} {}", found(0), size * share);
    }
}
