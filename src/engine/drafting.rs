//! Drafting by prompt lookup: the tokens that followed an earlier occurrence of the last tokens are
//! used as a draft. They are decoded together with the certain tokens and accepted as far as the
//! model would have chosen them (Saxena 2023, "prompt lookup decoding").
//!
//! The length of drafts is measured, not configured. [`Chances`] learns how often a draft token is
//! right by the length of the match, [`Cost`] how long a batch takes by its size, and
//! [`super::scheduler`] weighs one against the other.

use super::scheduler::Price;

/// Longest match that is looked for. Longer ones predict no better.
const LONGEST: usize = 16;
/// Shortest match that is used.
const SHORTEST: usize = 2;
/// Maximum number of draft tokens.
pub const MOST: usize = 24;

/// Draft tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Draft {
    /// Tokens that may follow.
    pub tokens: Vec<u32>,
    /// Number of last tokens that occurred before.
    pub matched: usize,
}

/// Returns at most `most` tokens that followed the longest match of the end of `text`. Among
/// equally long matches, the earliest wins (the event itself, rather than an excerpt of it).
pub fn look_up(text: &[u32], most: usize) -> Draft {
    let [.., before, last] = text else { return Draft::default() };
    let mut best = (0, 0);
    for end in SHORTEST..text.len() {
        // `text[..end]` is followed by a token. Check the last two tokens first, because most
        // positions differ there.
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

/// How often a draft token was right, by the length of the match before it.
#[derive(Debug, Clone)]
pub struct Chances {
    /// For each length: number of right draft tokens and of all, both decaying.
    seen: [(f64, f64); LONGEST + 1],
}

/// Number of past draft tokens that a new one is averaged with.
const MEMORY: f64 = 200.0;

impl Default for Chances {
    /// Before anything is known, assume that half of the draft tokens are right.
    fn default() -> Self {
        Self { seen: [(2.0, 4.0); LONGEST + 1] }
    }
}

impl Chances {
    /// Learns whether a draft token after a match of this length was right.
    pub fn learn(&mut self, matched: usize, right: bool) {
        let (good, all) = &mut self.seen[matched.min(LONGEST)];
        let fade = 1.0 - 1.0 / MEMORY;
        *good = *good * fade + f64::from(u8::from(right));
        *all = *all * fade + 1.0;
    }

    /// The probability that a draft token after a match of this length is right.
    pub fn right(&self, matched: usize) -> f64 {
        let (good, all) = self.seen[matched.min(LONGEST)];
        good / all
    }

    /// For each token of a draft, the probability that it and all before it are right.
    pub fn of(&self, draft: &Draft) -> Vec<f64> {
        let mut probability = 1.0;
        (0..draft.tokens.len())
            .map(|index| {
                // A right draft token makes the match longer.
                probability *= self.right(draft.matched + index);
                probability
            })
            .collect()
    }
}

/// Seconds per batch by its number of tokens. Tracks the faster batches of each size: other
/// programs only make a batch slower, so a mean would include their load.
#[derive(Debug, Clone)]
pub struct Cost {
    /// By number of tokens; 0 where nothing was measured.
    seconds: [f64; SIZES + 1],
    /// Seconds per prompt token.
    prompt_token: f64,
}

/// Largest batch whose cost is kept.
const SIZES: usize = 64;

/// Seconds that a batch of prompt tokens should never take; shares are sized to take less.
const LATE: f64 = 0.5;
/// A late batch is believed at once if it cost more than this many times the known price.
const SLOWER: f64 = 1.5;

/// Moves a price towards a low expectile: follows a fast measurement quickly and a slow one slowly.
fn follow(price: &mut f64, seconds: f64) {
    if *price == 0.0 {
        *price = seconds;
    } else {
        *price += (seconds - *price) * if seconds < *price { 0.5 } else { 0.02 };
    }
}

impl Default for Cost {
    /// Before anything is known, drafting looks cheap, so that it is tried and its cost is
    /// measured.
    fn default() -> Self {
        Self { seconds: [0.0; SIZES + 1], prompt_token: 0.0 }
    }
}

impl Cost {
    /// Learns how long a batch of this many tokens took.
    pub fn learn(&mut self, tokens: usize, seconds: f64) {
        if let Some(price) = self.seconds.get_mut(tokens) {
            follow(price, seconds);
        }
    }

    /// Learns how long a batch of this many prompt tokens took. A batch that took far too long is
    /// believed at once: the next ones must be smaller, whatever slowed the machine down.
    pub fn learn_prompt(&mut self, tokens: usize, seconds: f64) {
        let price = seconds / tokens.max(1) as f64;
        if seconds > LATE && price > SLOWER * self.prompt_token {
            self.prompt_token = price;
        } else {
            follow(&mut self.prompt_token, price);
        }
    }

    /// Seconds per prompt token, or an estimate before the first prompt.
    pub fn prompt_token(&self) -> f64 {
        if self.prompt_token == 0.0 { 1e-3 } else { self.prompt_token }
    }
}

impl Price for Cost {
    fn prompt_tokens(&self, seconds: f64) -> usize {
        if self.prompt_token == 0.0 { 0 } else { (seconds / self.prompt_token.max(1e-9)) as usize }
    }

    /// Seconds of a batch. For a size that was not measured: the cost of the next smaller one, plus
    /// a prompt token's cost for each further token. That is a lower bound, so that a size is tried
    /// before it is judged.
    fn batch(&self, tokens: usize) -> f64 {
        let known = (1..=tokens.min(SIZES)).rev().find(|&size| self.seconds[size] > 0.0);
        let (size, seconds) =
            known.map_or((1, 10.0 * self.prompt_token()), |size| (size, self.seconds[size]));
        seconds + self.prompt_token() * tokens.saturating_sub(size) as f64
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
    fn prices_are_those_of_an_undisturbed_machine_and_unknown_sizes_look_cheap() {
        let mut cost = Cost::default();
        cost.learn_prompt(500, 0.05);
        for round in 0..600 {
            // Every third batch is disturbed.
            let noise = if round % 3 == 0 { 5.0 } else { 1.0 };
            cost.learn(1, 1e-3 * noise);
            cost.learn(4, 2e-3 * noise);
        }
        assert!((cost.batch(1) - 1e-3).abs() < 2e-4, "{}", cost.batch(1));
        assert!((cost.batch(4) - 2e-3).abs() < 4e-4, "{}", cost.batch(4));
        assert!((cost.batch(2) - cost.batch(1) - 1e-4).abs() < 1e-9);
        assert!((cost.batch(6) - cost.batch(4) - 2e-4).abs() < 1e-9);
        assert!(cost.batch(500) > cost.batch(64));
        // A prompt's batch that took far too long is believed at once, and a fast one soon after.
        let tokens = cost.prompt_tokens(0.4);
        cost.learn_prompt(512, 5.12);
        assert_eq!((tokens, cost.prompt_tokens(0.4)), (4_000, 40));
        (0..10).for_each(|_| cost.learn_prompt(40, 0.004));
        assert!(cost.prompt_tokens(0.4) > 3_000);
        // A machine that stays slower is believed in the end.
        (0..200).for_each(|_| cost.learn(1, 3e-3));
        assert!(cost.batch(1) > 2.8e-3);
    }
}
