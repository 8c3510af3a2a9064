//! Muon (Jordan et al. 2024): the step of a matrix is its momentum, made nearly orthogonal by
//! Newton-Schulz iterations.
//!
//! The variant: Nesterov momentum as an exponential average (`m <- mu m + (1 - mu) g`, step from
//! `mu m + (1 - mu) g`), five iterations of the quintic with coefficients 3.4445, -4.7750, 2.0315,
//! and the step scaled by `sqrt(max(1, rows / columns))` for a weight `[rows, columns]` =
//! `[out, in]`, as in the author's reference implementation.

use candle_core::{DType, Result, Tensor};

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

/// Muon over named matrices.
#[derive(Debug)]
pub struct Muon {
    config: MuonConfig,
    /// Type of the iterations.
    iterate_in: DType,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    weight: Tensor,
    momentum: Tensor,
}

impl Muon {
    /// Zero momentum for matrices that share their storage with the model.
    pub(super) fn new(config: MuonConfig, parameters: Vec<(String, Tensor)>) -> Result<Self> {
        let entry =
            |(name, weight): (String, Tensor)| Ok(Entry { momentum: weight.zeros_like()?, name, weight });
        // On a GPU as in the author's implementation: bf16 is precise enough for a direction, and
        // much faster.
        let on_gpu = parameters.first().is_some_and(|(_, weight)| !weight.device().is_cpu());
        let iterate_in = if on_gpu { DType::BF16 } else { DType::F32 };
        Ok(Self { config, iterate_in, entries: parameters.into_iter().map(entry).collect::<Result<_>>()? })
    }

    /// Updates matrix `index`; matrices are independent of each other.
    pub(super) fn step(&self, index: usize, gradient: &Tensor, factor: f64) -> Result<()> {
        let MuonConfig { lr, momentum, weight_decay } = self.config;
        let lr = lr * factor;
        let entry = &self.entries[index];
        blend(&entry.momentum, momentum, 1.0 - momentum, gradient)?;
        let direction = entry.momentum.copy()?;
        blend(&direction, momentum, 1.0 - momentum, gradient)?;
        let step = orthogonalise(&direction, self.iterate_in)?;
        let (rows, columns) = entry.weight.dims2()?;
        let scale = (rows as f64 / columns as f64).max(1.0).sqrt();
        blend(&entry.weight, 1.0 - lr * weight_decay, -lr * scale, &step)
    }

    pub(super) fn state(&self) -> impl Iterator<Item = (String, Tensor)> {
        self.entries.iter().map(|entry| (format!("muon.momentum.{}", entry.name), entry.momentum.clone()))
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
        let gram = x.matmul(&x.t()?)?;
        let mixed = gram.matmul(&gram)?;
        blend(&mixed, c, b, &gram)?;
        let next = mixed.matmul(&x)?;
        blend(&next, 1.0, a, &x)?;
        x = next;
    }
    let x = x.to_dtype(matrix.dtype())?;
    if tall { x.t()?.contiguous() } else { Ok(x) }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let muon = Muon::new(MuonConfig::default(), vec![("w".into(), weight.as_tensor().clone())]).unwrap();
        let gradient = |values: [f32; 4]| Tensor::from_slice(&values, (4, 1), &Device::Cpu).unwrap();
        // A column is its own singular vector: step = lr * sqrt(4) * quintic(1) * direction.
        muon.step(0, &gradient([0.0, 2.0, 0.0, 0.0]), 0.5).unwrap();
        let size = 0.01 * 2.0 * iterate(1.0);
        let found = |at: usize| f64::from(weight.flatten_all().unwrap().to_vec1::<f32>().unwrap()[at]);
        assert!((found(1) + size).abs() < 1e-5 && found(0).abs() < 1e-9, "{} {size}", found(1));
        // Then m = 0.95 * 0.1 e1 + 0.05 e0, direction 0.95 m + 0.05 e0 = 0.0975 e0 + 0.09025 e1.
        muon.step(0, &gradient([1.0, 0.0, 0.0, 0.0]), 0.5).unwrap();
        let share = 0.0975 / 0.0975f64.hypot(0.09025);
        assert!((found(0) + size * share).abs() < 1e-5, "{} {}", found(0), size * share);
    }
}
