//! Drafting by prompt lookup: what followed the last tokens when they occurred before is guessed to follow again, decoded
//! together with them, and kept as far as the model would have chosen it (Saxena 2023, "prompt lookup decoding").
//!
//! How many tokens are worth guessing is measured, not set: [`Chances`] learns how often a guess is right by the length of
//! the match, [`Cost`] how long a batch takes by its size; [`super::scheduler`] weighs one against the other.

/// Longest match that is looked for; longer ones are as good.
const LONGEST: usize = 16;
/// Shortest match that is used.
const SHORTEST: usize = 2;
/// Longest draft.
pub const MOST: usize = 24;

/// A guess.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Draft {
    /// Tokens that may follow.
    pub tokens: Vec<u32>,
    /// How many of the last tokens had occurred before.
    pub matched: usize,
}

/// What followed the longest match of the end of `text`, at most `most` tokens; of equally long matches, the earliest
/// (the event itself, rather than an excerpt of it).
pub fn look_up(text: &[u32], most: usize) -> Draft {
    let [.., before, last] = text else { return Draft::default() };
    let mut best = (0, 0);
    for end in SHORTEST..text.len() {
        // `text[..end]` is followed by something; most places differ in their last two tokens.
        if text[end - 1] != *last || text[end - 2] != *before {
            continue;
        }
        let length =
            (0..end.min(LONGEST)).take_while(|&i| text[end - 1 - i] == text[text.len() - 1 - i]).count();
        if length > best.0 {
            best = (length, end);
            if length == LONGEST {
                break;
            }
        }
    }
    let (matched, from) = best;
    if matched < SHORTEST {
        return Draft::default();
    }
    Draft { tokens: text[from..].iter().copied().take(most).collect(), matched }
}

/// How often a guess was right, by the length of the match before it.
#[derive(Debug, Clone)]
pub struct Chances {
    /// For each length: right guesses and all guesses, both fading.
    seen: [(f64, f64); LONGEST + 1],
}

/// Guesses that a new one counts against.
const MEMORY: f64 = 200.0;

impl Default for Chances {
    /// Before anything is known, half of the guesses are right.
    fn default() -> Self {
        Self { seen: [(2.0, 4.0); LONGEST + 1] }
    }
}

impl Chances {
    /// Learns how a guess behind a match of this length went.
    pub fn learn(&mut self, matched: usize, right: bool) {
        let (good, all) = &mut self.seen[matched.min(LONGEST)];
        let fade = 1.0 - 1.0 / MEMORY;
        *good = *good * fade + f64::from(u8::from(right));
        *all = *all * fade + 1.0;
    }

    /// The probability that a guess behind a match of this length is right.
    pub fn right(&self, matched: usize) -> f64 {
        let (good, all) = self.seen[matched.min(LONGEST)];
        good / all
    }

    /// For each token of a draft, the probability that it and all before it are right.
    pub fn of(&self, draft: &Draft) -> Vec<f64> {
        let mut probability = 1.0;
        (0..draft.tokens.len())
            .map(|index| {
                // A guess that was right makes the match longer.
                probability *= self.right(draft.matched + index);
                probability
            })
            .collect()
    }
}

/// Seconds of a batch by its tokens, as a line that is fitted to the latest batches.
#[derive(Debug, Clone)]
pub struct Cost {
    // Fading sums of 1, n, n², t, n·t.
    sums: [f64; 5],
}

impl Default for Cost {
    /// Before anything is known, a second token costs a tenth of the first.
    fn default() -> Self {
        let mut cost = Self { sums: [0.0; 5] };
        cost.learn(1, 1e-3);
        cost.learn(11, 2e-3);
        cost
    }
}

impl Cost {
    /// Learns how long a batch of this many tokens took.
    pub fn learn(&mut self, tokens: usize, seconds: f64) {
        let n = tokens as f64;
        // An outlier (another program took the processor) must not turn the line round.
        let seconds = seconds.min(4.0 * self.batch(n).max(1e-4));
        for (sum, value) in self.sums.iter_mut().zip([1.0, n, n * n, seconds, n * seconds]) {
            *sum = *sum * (1.0 - 1.0 / MEMORY) + value;
        }
    }

    /// Seconds of a batch without any token, and of each token more.
    pub fn line(&self) -> (f64, f64) {
        let [w, n, nn, t, nt] = self.sums;
        if w == 0.0 {
            return (0.0, 0.0);
        }
        let spread = w * nn - n * n;
        // Batches of one size say nothing about a slope.
        let slope = if spread > 1e-9 * nn * w { (w * nt - n * t) / spread } else { 0.05 * t / n };
        // Neither less than nothing nor more than all of it.
        let slope = slope.clamp(0.02 * t / n, t / n);
        ((t - slope * n) / w, slope)
    }

    fn batch(&self, tokens: f64) -> f64 {
        let (fixed, slope) = self.line();
        if self.sums[0] == 0.0 { f64::INFINITY } else { fixed + slope * tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_is_followed() {
        let draft = |text: &[u32]| look_up(text, 3);
        assert_eq!(draft(&[]), Draft::default());
        assert_eq!(draft(&[1, 2, 3]), Draft::default());
        assert_eq!(draft(&[7, 1, 2, 3, 4, 5, 1, 2]), Draft { tokens: vec![3, 4, 5], matched: 2 });
        // 9 1 2 is longer than 8 1 2.
        assert_eq!(draft(&[8, 1, 2, 3, 9, 1, 2, 4, 9, 1, 2]), Draft { tokens: vec![4, 9, 1], matched: 3 });
        assert_eq!(draft(&[1, 2, 3, 1, 2, 4, 1, 2]).tokens, [3, 1, 2], "of equals the earliest");
        assert_eq!(draft(&[5, 5, 5, 5]), Draft { tokens: vec![5], matched: 3 });
        assert_eq!(draft(&[1, 2, 3, 4, 2]), Draft::default(), "one token is no match");
    }

    #[test]
    fn chances_are_learnt_by_the_length_of_the_match() {
        let mut chances = Chances::default();
        for _ in 0..400 {
            chances.learn(2, false);
            chances.learn(8, true);
        }
        assert!(chances.right(8) > 0.95 && chances.right(2) < 0.05);
        let draft = Draft { tokens: vec![0; 3], matched: 4 };
        assert_eq!(Chances::default().of(&draft), [0.5, 0.25, 0.125]);
    }

    #[test]
    fn the_line_is_found_under_noise_and_without_spread() {
        let (mut reads_all_weights, mut computes) = (Cost::default(), Cost::default());
        for n in (1..20).cycle().take(2_000) {
            reads_all_weights.learn(n, 80e-3 + 1e-3 * n as f64);
            computes.learn(n, 1e-5 + 5e-3 * n as f64);
        }
        let (call, token) = reads_all_weights.line();
        assert!((call - 80e-3).abs() < 5e-3 && (token - 1e-3).abs() < 5e-4, "{call} {token}");
        let (call, token) = computes.line();
        assert!(call.abs() < 5e-3 && (token - 5e-3).abs() < 5e-4, "{call} {token}");
        let mut one_size = Cost::default();
        (0..2_000).for_each(|_| one_size.learn(1, 1e-2));
        let (call, token) = one_size.line();
        assert!(call > 0.0 && token > 0.0 && call + token < 2e-2, "{call} {token}");
        reads_all_weights.learn(1, 10.0);
        assert!(reads_all_weights.line().0 < 0.1, "an outlier counts little");
    }
}
