//! AdamW (Loshchilov & Hutter 2019, algorithm 2) with both moments as plain tensors.

use candle_core::{Result, Tensor};

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
    /// The peak learning rate of a parameter.
    fn rate_of(&self, name: &str, dims: &[usize]) -> f64 {
        let own = if dims.len() == 1 {
            self.vector_lr
        } else if super::is_block_matrix(name, dims) {
            self.matrix_lr
        } else if name.starts_with("model.embed_tokens.") || name.starts_with("lm_head.") {
            self.embedding_lr
        } else {
            None
        };
        own.unwrap_or(self.lr)
    }
}

/// AdamW over named parameters.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// Peak learning rate.
    lr: f64,
    weight: Tensor,
    first: Tensor,
    second: Tensor,
}

impl AdamW {
    /// Zero moments for parameters that share their storage with the model.
    pub(super) fn new(config: AdamWConfig, parameters: Vec<(String, Tensor)>) -> Result<Self> {
        let entry = |(name, weight): (String, Tensor)| {
            let lr = config.rate_of(&name, weight.dims());
            Ok(Entry { first: weight.zeros_like()?, second: weight.zeros_like()?, name, lr, weight })
        };
        Ok(Self { config, steps: 0, entries: parameters.into_iter().map(entry).collect::<Result<_>>()? })
    }

    /// Begins a step; the bias corrections depend on their number.
    pub(super) fn count_step(&mut self) {
        self.steps += 1;
    }

    /// Updates parameter `index`.
    pub(super) fn step(&self, index: usize, gradient: &Tensor, factor: f64) -> Result<()> {
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (bias1, bias2) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
        let entry = &self.entries[index];
        let lr = entry.lr * factor;
        blend(&entry.first, beta1, 1.0 - beta1, gradient)?;
        blend_square(&entry.second, beta2, 1.0 - beta2, gradient)?;
        let decay = if entry.weight.rank() > 1 { lr * weight_decay } else { 0.0 };
        let (rate, keep) = ((lr / bias1) as f32, (1.0 - decay) as f32);
        let (inverse_bias2, eps) = ((1.0 / bias2) as f32, eps as f32);
        if is_elsewhere(&entry.weight) {
            let root = ((&entry.second * f64::from(inverse_bias2))?.sqrt()? + f64::from(eps))?;
            let step = (&entry.first / root)?;
            return blend(&entry.weight, f64::from(keep), -f64::from(rate), &step);
        }
        update(&entry.weight, &entry.first, &entry.second, |weight, first, second| {
            keep * weight - rate * first / ((second * inverse_bias2).sqrt() + eps)
        })
    }

    pub(super) fn state(&self) -> impl Iterator<Item = (String, Tensor)> {
        self.entries.iter().flat_map(|entry| {
            [
                (format!("adamw.first.{}", entry.name), entry.first.clone()),
                (format!("adamw.second.{}", entry.name), entry.second.clone()),
            ]
        })
    }

    pub(super) fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn two_steps_match_numbers_computed_by_hand() {
        let weight = Var::from_vec(vec![1.0f32, -2.0], (1, 2), &Device::Cpu).unwrap();
        let config = AdamWConfig { lr: 0.1, beta2: 0.99, weight_decay: 0.5, ..AdamWConfig::default() };
        let mut adamw = AdamW::new(config, vec![("w".into(), weight.as_tensor().clone())]).unwrap();
        let gradient = |values: [f32; 2]| Tensor::new(&[values], &Device::Cpu).unwrap();
        // Step 1: m/bias = g and sqrt(v/bias) = |g|, so w = 0.95 w - 0.1 sign(g).
        adamw.count_step();
        adamw.step(0, &gradient([0.5, -1.0]), 1.0).unwrap();
        assert_close(&weight, [0.85, -1.8]);
        // Step 2, g = (0.5, 2): m = 0.9 * 0.1 g1 + 0.1 g2 = (0.095, 0.11), bias1 = 0.19; v = 0.99 *
        // 0.01 g1^2 + 0.01 g2^2 = (0.004975, 0.0499), bias2 = 0.0199; rate halved by the factor.
        adamw.count_step();
        adamw.step(0, &gradient([0.5, 2.0]), 0.5).unwrap();
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
