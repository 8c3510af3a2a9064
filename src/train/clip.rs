//! Clipping of the gradients' global norm (Pascanu et al. 2013).

use candle_core::{Result, Tensor};

use super::in_place::blend;
use crate::model::ops::with_floats;

/// Euclidean norm over all gradients, summed in f64.
///
/// # Errors
/// Tensors that are not contiguous f32 in CPU memory.
pub fn global_norm(gradients: &[Tensor]) -> Result<f64> {
    let mut total = 0.0;
    for gradient in gradients {
        total += with_floats([gradient], "gradient norm", |[values]| {
            // Blocks keep the inner sum in vector registers.
            let block = |values: &[f32]| f64::from(values.iter().fold(0.0, |sum: f32, v| sum + v * v));
            Ok(values.chunks(64).map(block).sum::<f64>())
        })?;
    }
    Ok(total.sqrt())
}

/// Scales all gradients so that their norm is at most `limit`; gives the norm before.
///
/// # Errors
/// As [`global_norm`].
pub fn clip(gradients: &[Tensor], limit: f64) -> Result<f64> {
    let norm = global_norm(gradients)?;
    if norm > limit {
        for gradient in gradients {
            blend(gradient, limit / norm, 0.0, &gradient.zeros_like()?)?;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn only_long_gradients_are_scaled() {
        let gradients = || {
            let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
            [tensor(&[3.0, 0.0]), tensor(&[0.0, 4.0])]
        };
        let long = gradients();
        assert!((clip(&long, 1.0).unwrap() - 5.0).abs() < 1e-6);
        assert!((global_norm(&long).unwrap() - 1.0).abs() < 1e-6);
        let short = gradients();
        clip(&short, 10.0).unwrap();
        assert_eq!(short[1].to_vec1::<f32>().unwrap(), [0.0, 4.0]);
    }
}
