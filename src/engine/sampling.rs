//! Choosing a token from logits: greedy, or temperature with top-k, min-p and top-p, from a seeded generator.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Sampling;

/// Tokens whose probability is below e^-30 of the best one's are never drawn; leaving them out spares sorting them.
const NEGLIGIBLE: f64 = -30.0;

/// Chooses the tokens of one answer.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler; without a seed, one is drawn.
    pub fn new(settings: Sampling) -> Self {
        let seed = settings.seed.unwrap_or_else(rand::random);
        Self { settings, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next token, among those that `allowed` admits: by temperature, then top-k, min-p, top-p, then a draw.
    /// `None` if none is admitted.
    ///
    /// Draws one random number whatever the logits are, so that the n-th token depends on the n-th number.
    pub fn choose(&mut self, logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
        let candidates = (0u32..).zip(logits).filter(|&(token, logit)| !logit.is_nan() && allowed(token));
        // NaN is out, so this is a total order; of equals, the first.
        let best = candidates.clone().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        if self.settings.temperature <= 0.0 {
            return Some(best.0);
        }
        let drawn: f64 = self.rng.random();
        let scale = 1.0 / f64::from(self.settings.temperature);
        let mut kept: Vec<(u32, f64)> = candidates
            .map(|(token, &logit)| (token, (f64::from(logit) - f64::from(*best.1)) * scale))
            .filter(|&(token, score)| score > NEGLIGIBLE || token == best.0)
            .map(|(token, score)| (token, if token == best.0 { 1.0 } else { score.exp() }))
            .collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.settings.top_k > 0 {
            kept.truncate(self.settings.top_k as usize);
        }
        // Weights are relative to the best token's, which is what min-p is about.
        kept.retain(|&(_, weight)| weight >= f64::from(self.settings.min_p));
        let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
        let mut reached = 0.0;
        let enough = f64::from(self.settings.top_p) * total;
        let nucleus = kept.iter().position(|&(_, weight)| {
            reached += weight;
            reached >= enough
        });
        kept.truncate(nucleus.map_or(kept.len(), |last| last + 1));
        let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
        let mut left = drawn * total;
        for &(token, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return Some(token);
            }
        }
        kept.last().map(|&(token, _)| token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32) -> Sampling {
        Sampling { temperature, seed: Some(7), ..Sampling::GREEDY }
    }

    fn draws(settings: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings);
        (0..n).map(|_| sampler.choose(logits, |_| true).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_best_admitted_and_survives_nan() {
        let mut greedy = Sampler::new(Sampling::GREEDY);
        let logits = [1.0, f32::NAN, 3.0, 3.0, f32::NEG_INFINITY];
        assert_eq!(greedy.choose(&logits, |_| true), Some(2));
        assert_eq!(greedy.choose(&logits, |t| t != 2), Some(3));
        assert_eq!(greedy.choose(&logits, |t| t == 4), Some(4));
        assert_eq!(greedy.choose(&logits, |t| t == 1), None);
    }

    #[test]
    fn shares_follow_the_softmax() {
        let logits = [2.0_f32.ln(), 0.0, 6.0_f32.ln()];
        let drawn = draws(sampler(1.0), &logits, 9_000);
        for (token, share) in [(0, 2.0 / 9.0), (1, 1.0 / 9.0), (2, 6.0 / 9.0)] {
            let found = drawn.iter().filter(|&&t| t == token).count() as f64 / 9_000.0;
            assert!((found - share).abs() < 0.02, "token {token}: {found} instead of {share}");
        }
    }

    #[test]
    fn filters_leave_out_what_they_say() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.15_f32.ln(), 0.05_f32.ln()];
        let seen = |settings| {
            let mut tokens = draws(settings, &logits, 500);
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        assert_eq!(seen(Sampling { top_k: 2, ..sampler(1.0) }), [0, 1]);
        assert_eq!(seen(Sampling { top_p: 0.75, ..sampler(1.0) }), [0, 1]);
        assert_eq!(seen(Sampling { min_p: 0.2, ..sampler(1.0) }), [0, 1, 2]);
        assert_eq!(seen(sampler(1.0)), [0, 1, 2, 3]);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        assert_eq!(draws(sampler(0.8), &logits, 40), draws(sampler(0.8), &logits, 40));
        let other = Sampling { seed: Some(8), ..sampler(0.8) };
        assert_ne!(draws(sampler(0.8), &logits, 40), draws(other, &logits, 40));
    }
}
