//! Chooses a token from logits: greedily, or by temperature, top-k, min-p and top-p with a seeded
//! generator.

use std::collections::{HashMap, VecDeque};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Penalties, Sampling};

/// Natural logarithm of a share of the best token's probability. Tokens below it are never drawn,
/// which saves sorting them.
const NEGLIGIBLE: f64 = -30.0;

/// Chooses the tokens of one answer.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Sampling,
    bias: Vec<(u32, f32)>,
    /// Tokens that count as used, oldest first.
    history: VecDeque<u32>,
    /// Number of occurrences of each token in the history.
    counts: HashMap<u32, u32>,
    rng: ChaCha8Rng,
}

/// The tokens that count as used at some position of an answer.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    history: VecDeque<u32>,
    counts: HashMap<u32, u32>,
}

/// A bias of this or less bans a token.
const BANNED: f32 = -100.0;

impl Sampler {
    /// Creates a sampler for the answer to `prompt`. Without a seed, draws a random one.
    pub fn new(settings: Sampling, bias: &[(u32, f32)], prompt: &[u32]) -> Self {
        let seed = settings.seed.unwrap_or_else(rand::random);
        let mut sampler = Self {
            settings,
            bias: bias.to_vec(),
            history: VecDeque::new(),
            counts: HashMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        };
        if let Some(last) = settings.penalties.last {
            sampler.used(&prompt[prompt.len().saturating_sub(last as usize)..]);
        }
        sampler
    }

    /// Records tokens of the answer as used.
    pub fn used(&mut self, tokens: &[u32]) {
        if self.settings.penalties == Penalties::NONE {
            return;
        }
        for &token in tokens {
            self.history.push_back(token);
            *self.counts.entry(token).or_default() += 1;
            if self.settings.penalties.last.is_some_and(|last| self.history.len() > last as usize)
                && let Some(oldest) = self.history.pop_front()
                && let Some(count) = self.counts.get_mut(&oldest)
            {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&oldest);
                }
            }
        }
    }

    /// The tokens that count as used now.
    pub fn memory(&self) -> Memory {
        Memory { history: self.history.clone(), counts: self.counts.clone() }
    }

    /// Restores the tokens that counted as used. The random generator is not reset.
    pub fn recall(&mut self, memory: Memory) {
        (self.history, self.counts) = (memory.history, memory.counts);
    }

    /// Logits with bias and penalties applied, if there are any.
    fn adjusted(&self, logits: &[f32]) -> Option<Vec<f32>> {
        if self.bias.is_empty() && self.counts.is_empty() {
            return None;
        }
        let mut logits = logits.to_vec();
        for &(token, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if bias <= BANNED { f32::NEG_INFINITY } else { *logit + bias };
            }
        }
        let Penalties { repeat, presence, frequency, .. } = self.settings.penalties;
        for (&token, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / repeat } else { *logit * repeat };
                *logit -= presence + frequency * count as f32;
            }
        }
        Some(logits)
    }

    /// Chooses the next token among those that `allowed` admits: applies temperature, then top-k,
    /// min-p and top-p, then draws. `None` if no token is admitted.
    ///
    /// Draws one random number whatever the logits are, so that the n-th token depends on the n-th
    /// number. Greedy sampling draws none.
    pub fn choose(&mut self, logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
        match self.adjusted(logits) {
            Some(logits) => self.choose_adjusted(&logits, allowed),
            None => self.choose_adjusted(logits, allowed),
        }
    }

    /// The distribution that [`choose`](Self::choose) draws from: tokens and their shares, largest
    /// first. The shares add up to 1. Greedy sampling has one token.
    pub fn shares(&self, logits: &[f32], allowed: impl Fn(u32) -> bool) -> Vec<(u32, f64)> {
        let adjusted = self.adjusted(logits);
        let Some(mut kept) = self.kept(adjusted.as_deref().unwrap_or(logits), allowed) else {
            return Vec::new();
        };
        let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
        for (_, weight) in &mut kept {
            *weight /= total;
        }
        kept
    }

    fn choose_adjusted(&mut self, logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
        let kept = self.kept(logits, allowed)?;
        if self.settings.temperature <= 0.0 {
            return kept.first().map(|&(token, _)| token);
        }
        let drawn: f64 = self.rng.random();
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

    /// The tokens that can be drawn, largest first, with weights relative to the best one. `None`
    /// if no token is admitted.
    fn kept(&self, logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<Vec<(u32, f64)>> {
        let candidates = (0u32..).zip(logits).filter(|&(token, logit)| !logit.is_nan() && allowed(token));
        // Without NaN, this is a total order. On a tie, the first token wins.
        let best = candidates.clone().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        if self.settings.temperature <= 0.0 {
            return Some(vec![(best.0, 1.0)]);
        }
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
        // Weights are relative to the best token's, as min-p requires.
        kept.retain(|&(_, weight)| weight >= f64::from(self.settings.min_p));
        let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
        let mut reached = 0.0;
        let enough = f64::from(self.settings.top_p) * total;
        let nucleus = kept.iter().position(|&(_, weight)| {
            reached += weight;
            reached >= enough
        });
        kept.truncate(nucleus.map_or(kept.len(), |last| last + 1));
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32) -> Sampling {
        Sampling { temperature, seed: Some(7), ..Sampling::GREEDY }
    }

    fn draws(settings: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings, &[], &[]);
        (0..n).map(|_| sampler.choose(logits, |_| true).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_best_admitted_and_survives_nan() {
        let mut greedy = Sampler::new(Sampling::GREEDY, &[], &[]);
        let logits = [1.0, f32::NAN, 3.0, 3.0, f32::NEG_INFINITY];
        assert_eq!(greedy.choose(&logits, |_| true), Some(2));
        assert_eq!(greedy.choose(&logits, |t| t != 2), Some(3));
        assert_eq!(greedy.choose(&logits, |t| t == 4), Some(4));
        assert_eq!(greedy.choose(&logits, |t| t == 1), None);
    }

    #[test]
    fn bias_and_penalties_change_the_choice() {
        let choose = |sampler: &mut Sampler, logits: &[f32]| sampler.choose(logits, |_| true).unwrap();
        let logits = [1.0, 0.9, -1.0];
        let biased = |bias: &[(u32, f32)]| choose(&mut Sampler::new(Sampling::GREEDY, bias, &[]), &logits);
        assert_eq!((biased(&[]), biased(&[(0, -100.0)]), biased(&[(2, 5.0), (99, 1.0)])), (0, 1, 2));

        let penalised = |penalties, prompt: &[u32], used: &[u32]| {
            let mut sampler = Sampler::new(Sampling { penalties, ..Sampling::GREEDY }, &[], prompt);
            sampler.used(used);
            choose(&mut sampler, &logits)
        };
        let none = Penalties::NONE;
        assert_eq!(penalised(Penalties { presence: 0.2, ..none }, &[0], &[]), 0, "the prompt doesn't count");
        assert_eq!(penalised(Penalties { presence: 0.2, ..none }, &[], &[0]), 1);
        assert_eq!(penalised(Penalties { frequency: 0.06, ..none }, &[], &[0]), 0);
        assert_eq!(penalised(Penalties { frequency: 0.06, ..none }, &[], &[0, 0]), 1);
        assert_eq!(penalised(Penalties { repeat: 1.2, last: Some(2), ..none }, &[0], &[]), 1);
        assert_eq!(penalised(Penalties { repeat: 1.2, last: Some(2), ..none }, &[0], &[2, 2]), 0, "long ago");
        assert_eq!(
            choose(
                &mut {
                    let repeat = Penalties { repeat: 9.0, ..none };
                    let mut sampler =
                        Sampler::new(Sampling { penalties: repeat, ..Sampling::GREEDY }, &[], &[]);
                    sampler.used(&[1]);
                    sampler
                },
                &[-3.0, -1.0]
            ),
            0,
            "a negative logit is multiplied"
        );
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
    fn what_is_drawn_from_is_told_and_drawn_from() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.15_f32.ln(), 0.05_f32.ln()];
        let shares = |settings, allowed: fn(u32) -> bool| {
            Sampler::new(settings, &[(3, -100.0)], &[]).shares(&logits, allowed)
        };
        let near = |found: Vec<(u32, f64)>, expected: &[(u32, f64)]| {
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-6,
                    "{found:?} {expected:?}"
                );
            }
        };
        let all = |_| true;
        near(shares(Sampling { top_k: 2, ..sampler(1.0) }, all), &[(0, 0.625), (1, 0.375)]);
        near(shares(sampler(1.0), |token| token != 0), &[(1, 2.0 / 3.0), (2, 1.0 / 3.0)]);
        near(shares(Sampling::GREEDY, all), &[(0, 1.0)]);
        near(shares(sampler(1.0), |_| false), &[]);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        assert_eq!(draws(sampler(0.8), &logits, 40), draws(sampler(0.8), &logits, 40));
        let other = Sampling { seed: Some(8), ..sampler(0.8) };
        assert_ne!(draws(sampler(0.8), &logits, 40), draws(other, &logits, 40));
    }
}
