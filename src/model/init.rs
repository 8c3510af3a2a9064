//! Starting values of a decoder that is trained from nothing.

use candle_core::{Device, Result, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{DecoderConfig, Parameters};

/// Standard deviation of the embedding, as in GPT-2.
const EMBEDDING_STD: f64 = 0.02;

/// Parameters drawn from a seed: norms 1, embedding and head N(0, 0.02), matrices N(0, 1 / in), and those that write to the
/// residual stream a further `sqrt(2 layers)` smaller, so that its variance does not grow with depth (GPT-2).
///
/// # Errors
/// Shapes that do not fit memory.
pub fn initialise(config: &DecoderConfig, seed: u64) -> Result<Parameters> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = Parameters::default();
    for (name, shape) in config.parameter_shapes() {
        let count = shape.iter().product();
        let std = match shape.as_slice() {
            [_] => None,
            _ if name.starts_with("model.embed_tokens") || name.starts_with("lm_head") => Some(EMBEDDING_STD),
            [.., inputs] => {
                let writes = name.contains("o_proj") || name.contains("down_proj");
                let depth = if writes { 2.0 * config.layers as f64 } else { 1.0 };
                Some(1.0 / (*inputs as f64 * depth).sqrt())
            }
            [] => None,
        };
        let values = match std {
            Some(std) => (0..count).map(|_| (normal(&mut rng) * std) as f32).collect(),
            None => vec![1.0; count],
        };
        parameters.insert(name, Var::from_vec(values, shape, &Device::Cpu)?)?;
    }
    Ok(parameters)
}

/// A standard normal value (Box-Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos()
}
