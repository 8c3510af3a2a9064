//! Initial values of a decoder that is trained from scratch.

use candle_core::{Device, Result, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::features::NormWeight;
use super::{DecoderConfig, Parameters};

/// Standard deviation of the embedding, as in GPT-2.
const EMBEDDING_STD: f64 = 0.02;

/// Parameters drawn from a seed: norms multiply by 1, biases are 0, embedding and head are N(0,
/// 0.02), matrices N(0, 1 / in). Matrices that write to the residual stream are a further
/// `sqrt(2 layers)` smaller, so that its variance doesn't grow with depth (GPT-2). The decay of a
/// DeltaNet starts as in transformers: rates from nearly 0 to 16, a bias of 1.
///
/// # Errors
/// Shapes that don't fit in memory.
pub fn initialise(config: &DecoderConfig, seed: u64) -> Result<Parameters> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = Parameters::default();
    for (name, shape) in config.parameter_shapes() {
        let count = shape.iter().product();
        let values = if shape.len() == 1 {
            vector(config, &name, count, &mut rng)
        } else {
            let std = standard_deviation(config, &name, &shape);
            (0..count).map(|_| (normal(&mut rng) * std) as f32).collect()
        };
        parameters.insert(name, Var::from_vec(values, shape, &Device::Cpu)?)?;
    }
    Ok(parameters)
}

/// Standard deviation of a matrix.
fn standard_deviation(config: &DecoderConfig, name: &str, shape: &[usize]) -> f64 {
    if name.starts_with("model.embed_tokens") || name.starts_with("lm_head") {
        return EMBEDDING_STD;
    }
    let writes = ["o_proj", "out_proj", "down_proj"].iter().any(|part| name.contains(part));
    let depth = if writes { 2.0 * config.layers as f64 } else { 1.0 };
    let inputs = shape.last().copied().unwrap_or(1);
    1.0 / (inputs as f64 * depth).sqrt()
}

/// Values of a norm, a bias, or a rate of decay.
fn vector(config: &DecoderConfig, name: &str, count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    if name.ends_with("A_log") {
        return (0..count).map(|_| rng.random_range(0.01..16.0f64).ln() as f32).collect();
    }
    let bias = name.rsplit('.').next() == Some("bias");
    // The norm inside a DeltaNet multiplies by its weight in every architecture.
    let one = name.ends_with("linear_attn.norm.weight") || name.ends_with("dt_bias");
    let zero = bias || config.features.norm == NormWeight::OnePlus && !one;
    vec![if zero { 0.0 } else { 1.0 }; count]
}

/// A standard normal value (Box-Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos()
}
