//! Llama 3's rotary scaling in a GGUF file: llama.cpp reads the resulting divisors, an import
//! needs the parameters.

use crate::gguf::{Gguf, Writer};
use crate::model::{DecoderConfig, FileError, RopeScaling};

/// Keys in which an export stores the scaling.
const KEYS: [&str; 4] = [
    "bespoke.rope_scaling.factor",
    "bespoke.rope_scaling.low_freq_factor",
    "bespoke.rope_scaling.high_freq_factor",
    "bespoke.rope_scaling.original_max_position",
];

/// The tensor of divisors.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Writes the keys, if there is a scaling.
pub(super) fn write(config: &DecoderConfig, writer: &mut Writer) {
    if let Some(scaling) = &config.rope_scaling {
        let RopeScaling { factor, low_freq_factor, high_freq_factor, original_max_position } = *scaling;
        let values = [factor, low_freq_factor, high_freq_factor, original_max_position as f64];
        for (key, value) in KEYS.into_iter().zip(values) {
            writer.set(key, value);
        }
    }
}

/// Divisors of the rotary frequencies, `[head_dim / 2]` (the piecewise rule of Llama 3.1).
pub(super) fn factors(config: &DecoderConfig, scaling: &RopeScaling) -> Vec<f32> {
    let RopeScaling { factor, low_freq_factor: low, high_freq_factor: high, original_max_position } =
        *scaling;
    let context = original_max_position as f64;
    let one = |pair: usize| {
        let exponent = 2.0 * pair as f64 / config.head_dim as f64;
        let wavelength = 2.0 * std::f64::consts::PI * config.rope_theta.powf(exponent);
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..config.head_dim / 2).map(|pair| one(pair) as f32).collect()
}

/// Reads Llama 3's scaling from this program's own keys, or recognises it by the factors of
/// published models.
pub(super) fn read(file: &Gguf, config: &DecoderConfig) -> Result<Option<RopeScaling>, FileError> {
    if file.tensor(ROPE_FREQS).is_none() {
        return Ok(None);
    }
    let found = file.tensor_f32(ROPE_FREQS)?;
    let close = |scaling: &RopeScaling| {
        let expected = factors(config, scaling);
        expected.iter().zip(&found).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs())
    };
    let scaling = |factor, low_freq_factor, high_freq_factor, original_max_position| RopeScaling {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position,
    };
    let candidates = match file.find::<f64>(KEYS[0])? {
        Some(factor) => {
            let [low, high, context] = [1, 2, 3].map(|key| file.get::<f64>(KEYS[key]));
            vec![scaling(factor, low?, high?, context? as usize)]
        }
        // Llama 3.1 and 3.2.
        None => vec![scaling(8.0, 1.0, 4.0, 8192), scaling(32.0, 1.0, 4.0, 8192)],
    };
    if let Some(scaling) = candidates.into_iter().find(close) {
        return Ok(Some(scaling));
    }
    let expected = "the factors of Llama 3.1 or 3.2, or those of the bespoke.rope_scaling keys";
    Err(FileError::key(file.path(), ROPE_FREQS, format!("{found:?}"), expected))
}
