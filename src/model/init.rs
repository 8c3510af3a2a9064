//! Initial values of a decoder that is trained from scratch.

use candle_core::{Device, Result, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::features::NormWeight;
use super::spec::{NormAt, Part};
use super::{DecoderConfig, Parameters, Projection, Role};

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
    for parameter in config.parameters() {
        let (role, shape) = (parameter.role, parameter.shape());
        let count = shape.iter().product();
        let values = if shape.len() == 1 {
            vector(config, role, count, &mut rng)
        } else {
            let std = standard_deviation(config, role, &shape);
            (0..count).map(|_| (normal(&mut rng) * std) as f32).collect()
        };
        parameters.insert(parameter.name, role, Var::from_vec(values, shape, &Device::Cpu)?)?;
    }
    Ok(parameters)
}

/// Spread of a matrix.
fn standard_deviation(config: &DecoderConfig, role: Role, shape: &[usize]) -> f64 {
    if matches!(role, Role::Embedding | Role::Head) {
        return EMBEDDING_STD;
    }
    let writes = matches!(
        role.part(),
        Some(Part::Weight(Projection::Output | Projection::DeltaOutput | Projection::Down))
    );
    let depth = if writes { 2.0 * config.layers() as f64 } else { 1.0 };
    let inputs = shape.last().copied().unwrap_or(1);
    1.0 / (inputs as f64 * depth).sqrt()
}

/// Values of a norm, a bias, or a rate of decay.
fn vector(config: &DecoderConfig, role: Role, count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let value = match role.part() {
        Some(Part::DecayRate) => {
            return (0..count).map(|_| rng.random_range(0.01..16.0f64).ln() as f32).collect();
        }
        Some(Part::Bias(_)) => 0.0,
        // The norm inside a DeltaNet multiplies by its weight in every architecture.
        Some(Part::TimeBias | Part::Norm(NormAt::DeltaRead)) => 1.0,
        _ if config.features.norm == NormWeight::OnePlus => 0.0,
        _ => 1.0,
    };
    vec![value; count]
}

/// A standard normal value (Box-Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos()
}
