//! Dynamic batch loading (Xia et al. 2023, algorithm 1): domains that lag behind their reference
//! are read more often.

use crate::train::recipe::LoadingRecipe;

/// `w' = (1 - c) softmax(ln w + eta (loss - reference)) + c / n`; with `clip`, a domain that is
/// better than its reference counts as equal to it.
pub fn next_weights(
    weights: &[f64],
    losses: &[f64],
    references: &[f64],
    loading: &LoadingRecipe,
) -> Vec<f64> {
    let excess = |(loss, reference): (&f64, &f64)| {
        let excess = loss - reference;
        if loading.clip { excess.max(0.0) } else { excess }
    };
    let excess = losses.iter().zip(references).map(excess);
    let scores: Vec<f64> = weights.iter().zip(excess).map(|(w, e)| w.ln() + loading.eta * e).collect();
    // The largest score is subtracted, so that no exponential overflows.
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let raised: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let sum: f64 = raised.iter().sum();
    let even = loading.c / weights.len() as f64;
    raised.iter().map(|value| (1.0 - loading.c) * value / sum + even).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loading(clip: bool) -> LoadingRecipe {
        LoadingRecipe { every: 1, eta: 1.0, c: 1e-4, clip }
    }

    /// Results of the public implementation (`princeton-nlp/LLM-Shearing`) for its seven domains.
    #[test]
    fn weights_are_those_of_the_reference_implementation() {
        let bytes = include_bytes!("../../../tests/fixtures/parity/shearing_dynamic_loading.safetensors");
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let values = |name: &str| -> Vec<f64> {
            file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect()
        };
        let (mut weights, reference, losses) =
            (values("initial"), values("reference_loss"), values("losses"));
        for (round, losses) in losses.chunks(7).enumerate() {
            weights = next_weights(&weights, losses, &reference, &loading(false));
            for (found, expected) in weights.iter().zip(values(&format!("after.{round}"))) {
                // The reference computes its softmax in f32.
                assert!((found - expected).abs() < 1e-7, "round {round}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn clipping_forgives_being_ahead_and_nothing_overflows() {
        let ahead = next_weights(&[0.5, 0.5], &[1.0, 2.0], &[2.0, 2.0], &loading(true));
        assert!((ahead[0] - 0.5).abs() < 1e-12);
        let behind = next_weights(&[0.5, 0.5], &[1.0, 2.0], &[2.0, 2.0], &loading(false));
        assert!(behind[0] < 0.4 && (behind.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let far = next_weights(&[0.5, 0.5], &[1e4, 0.0], &[0.0, 0.0], &loading(false));
        assert!(far.iter().all(|w| w.is_finite() && *w > 0.0), "{far:?}");
    }
}
