//! Clipping of the gradients' global norm (Pascanu et al. 2013).

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Tensor};

use super::in_place::{is_elsewhere, scale};
use crate::device::Workers;
use crate::model::ops::with_floats;
use crate::simd_math::dot;

/// Values whose squares are summed in f32.
const BLOCK: usize = 1024;

/// Euclidean norm over all gradients, summed in f64 in a fixed order.
///
/// # Errors
/// Tensors that are not contiguous or not f32.
pub fn global_norm(gradients: &[Tensor], workers: &Workers) -> Result<f64> {
    if gradients.first().is_some_and(is_elsewhere) {
        return norm_by_tensors(gradients);
    }
    let squares = Mutex::new(vec![0.0; gradients.len()]);
    workers.each(gradients.len(), |at| {
        let square = with_floats([&gradients[at]], "gradient norm", |[values]| {
            // Blocks let the inner sum stay in vector registers.
            let block = |values: &[f32]| f64::from(dot(values, values));
            Ok(values.chunks(BLOCK).map(block).sum::<f64>())
        })?;
        squares.lock().unwrap_or_else(PoisonError::into_inner)[at] = square;
        Ok::<_, candle_core::Error>(())
    })?;
    Ok(squares.into_inner().unwrap_or_else(PoisonError::into_inner).iter().sum::<f64>().sqrt())
}

/// The same for tensors on any device: each sum of squares is rounded to the type of the tensor,
/// and all are copied to the host at once.
fn norm_by_tensors(gradients: &[Tensor]) -> Result<f64> {
    let squares: Vec<Tensor> = gradients
        .iter()
        .map(|gradient| gradient.sqr()?.sum_all()?.to_dtype(DType::F64))
        .collect::<Result<_>>()?;
    Ok(Tensor::stack(&squares, 0)?.to_vec1::<f64>()?.iter().sum::<f64>().sqrt())
}

/// Scales all gradients so that their norm is at most `limit`; returns the original norm.
///
/// # Errors
/// As [`global_norm`].
pub fn clip(gradients: &[Tensor], limit: f64, workers: &Workers) -> Result<f64> {
    let norm = global_norm(gradients, workers)?;
    if norm > limit {
        workers.each(gradients.len(), |at| scale(&gradients[at], limit / norm))?;
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn only_long_gradients_are_scaled() {
        let workers = Workers::new(2).unwrap();
        let gradients = || {
            let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
            [tensor(&[3.0, 0.0]), tensor(&[0.0, 4.0])]
        };
        let long = gradients();
        assert!((clip(&long, 1.0, &workers).unwrap() - 5.0).abs() < 1e-6);
        assert!((global_norm(&long, &workers).unwrap() - 1.0).abs() < 1e-6);
        let short = gradients();
        clip(&short, 10.0, &workers).unwrap();
        assert_eq!(short[1].to_vec1::<f32>().unwrap(), [0.0, 4.0]);
    }
}
