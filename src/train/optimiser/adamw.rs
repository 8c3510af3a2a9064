//! AdamW (Loshchilov & Hutter 2019, algorithm 2) with both moments as plain tensors.

use candle_core::{Result, Tensor};

use super::{Algorithm, Stride};
use crate::train::in_place::{blend, blend_square, is_elsewhere, update};

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Peak learning rate of the groups that have no rate of their own.
    pub lr: f64,
    /// Rate of the matrices of blocks and adapters, if AdamW updates them (`train.matrices`).
    pub matrix_lr: Option<f64>,
    /// Rate of the embedding and the head.
    pub embedding_lr: Option<f64>,
    /// Rate of vectors: norms, biases, gates.
    pub vector_lr: Option<f64>,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate; vectors don't decay.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        let (matrix_lr, embedding_lr, vector_lr) = (None, None, None);
        Self {
            lr: 3e-3,
            matrix_lr,
            embedding_lr,
            vector_lr,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl AdamWConfig {
    /// The algorithm with these constants.
    pub(super) fn algorithm(&self) -> Algorithm {
        let &Self { beta1, beta2, eps, weight_decay, .. } = self;
        Algorithm::AdamW { beta1, beta2, eps, weight_decay }
    }
}

/// AdamW of one parameter.
#[derive(Debug)]
pub(super) struct AdamW {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    pub(super) first: Tensor,
    pub(super) second: Tensor,
}

impl AdamW {
    /// Zero moments.
    pub(super) fn new(weight: &Tensor, betas: [f64; 2], eps: f64, weight_decay: f64) -> Result<Self> {
        Ok(Self { betas, eps, weight_decay, first: weight.zeros_like()?, second: weight.zeros_like()? })
    }

    /// Updates the parameter.
    pub(super) fn step(&self, weight: &Tensor, gradient: &Tensor, stride: Stride) -> Result<()> {
        let [beta1, beta2] = self.betas;
        let steps = i32::try_from(stride.step).unwrap_or(i32::MAX);
        let (bias1, bias2) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
        blend(&self.first, beta1, 1.0 - beta1, gradient)?;
        blend_square(&self.second, beta2, 1.0 - beta2, gradient)?;
        let rate = (stride.direction.sign() * stride.rate / bias1) as f32;
        let keep = (1.0 - stride.rate * self.weight_decay) as f32;
        let (inverse_bias2, eps) = ((1.0 / bias2) as f32, self.eps as f32);
        if is_elsewhere(weight) {
            let root = ((&self.second * f64::from(inverse_bias2))?.sqrt()? + f64::from(eps))?;
            let step = (&self.first / root)?;
            return blend(weight, f64::from(keep), -f64::from(rate), &step);
        }
        update(weight, &self.first, &self.second, |weight, first, second| {
            keep * weight - rate * first / ((second * inverse_bias2).sqrt() + eps)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::optimiser::Direction;
    use candle_core::{Device, Var};

    #[test]
    fn two_steps_match_numbers_computed_by_hand() {
        let weight = Var::from_vec(vec![1.0f32, -2.0], (1, 2), &Device::Cpu).unwrap();
        let adamw = AdamW::new(&weight, [0.9, 0.99], 1e-8, 0.5).unwrap();
        let stride = |rate, step| Stride { rate, direction: Direction::Descend, step };
        let gradient = |values: [f32; 2]| Tensor::new(&[values], &Device::Cpu).unwrap();
        // Step 1: m/bias = g and sqrt(v/bias) = |g|, so w = 0.95 w - 0.1 sign(g).
        adamw.step(&weight, &gradient([0.5, -1.0]), stride(0.1, 1)).unwrap();
        assert_close(&weight, [0.85, -1.8]);
        // Step 2, g = (0.5, 2): m = 0.9 * 0.1 g1 + 0.1 g2 = (0.095, 0.11), bias1 = 0.19; v = 0.99 *
        // 0.01 g1^2 + 0.01 g2^2 = (0.004975, 0.0499), bias2 = 0.0199; rate halved.
        adamw.step(&weight, &gradient([0.5, 2.0]), stride(0.05, 2)).unwrap();
        let expected = |w: f64, m: f64, v: f64| 0.975 * w - 0.05 * (m / 0.19) / (v / 0.0199).sqrt();
        assert_close(&weight, [expected(0.85, 0.095, 0.004_975), expected(-1.8, 0.11, 0.0499)]);
    }

    fn assert_close(weight: &Var, expected: [f64; 2]) {
        let found = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found}, expected {expected}");
        }
    }
}
