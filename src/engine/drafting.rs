//! Drafting by prompt lookup: what followed the last tokens when they occurred before is guessed to follow again, decoded
//! together with them, and kept as far as the model would have chosen it (Saxena 2023, "prompt lookup decoding").
//!
//! How many tokens are worth guessing is measured, not set: [`Chances`] learns how often a guess is right by the length of
//! the match, [`Cost`] how long a batch takes by its size; [`super::scheduler`] weighs one against the other.

use super::scheduler::Price;

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

/// Seconds of a batch by its tokens: what the quicker ones of each size took. Other programs make a batch slower, never
/// faster, so the mean would tell of them.
#[derive(Debug, Clone)]
pub struct Cost {
    /// By the number of tokens; 0 where nothing is known yet.
    seconds: [f64; SIZES + 1],
    /// Of a prompt's token.
    prompt_token: f64,
}

/// Largest batch whose price is kept.
const SIZES: usize = 64;

/// Seconds that a batch of a prompt should never take: shares are made for less.
const LATE: f64 = 0.5;
/// How many times the known price a late batch must have cost to be believed.
const SLOWER: f64 = 1.5;

/// A low expectile: follows a quick value at once and a slow one slowly.
fn follow(price: &mut f64, seconds: f64) {
    if *price == 0.0 {
        *price = seconds;
    } else {
        *price += (seconds - *price) * if seconds < *price { 0.5 } else { 0.02 };
    }
}

impl Default for Cost {
    /// Before anything is known, guesses look cheap: they are tried, and their price is learnt.
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

    /// Learns how long a batch of this many tokens of prompts took. One that took longer than any should is believed at
    /// once: the next ones must be smaller, whatever made the machine slow.
    pub fn learn_prompt(&mut self, tokens: usize, seconds: f64) {
        let price = seconds / tokens.max(1) as f64;
        if seconds > LATE && price > SLOWER * self.prompt_token {
            self.prompt_token = price;
        } else {
            follow(&mut self.prompt_token, price);
        }
    }

    /// Seconds of a prompt's token; a guess before the first prompt.
    pub fn prompt_token(&self) -> f64 {
        if self.prompt_token == 0.0 { 1e-3 } else { self.prompt_token }
    }
}

impl Price for Cost {
    fn prompt_tokens(&self, seconds: f64) -> usize {
        if self.prompt_token == 0.0 { 0 } else { (seconds / self.prompt_token.max(1e-9)) as usize }
    }

    /// Seconds of a batch. Where its size has not been seen, the next smaller one's and, for each token more, a prompt's
    /// token: that is the least they can cost, so that a size is tried before it is judged.
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
        // A prompt's batch that took far too long is believed at once, and a quick one soon after.
        let tokens = cost.prompt_tokens(0.4);
        cost.learn_prompt(512, 5.12);
        assert_eq!((tokens, cost.prompt_tokens(0.4)), (4_000, 40));
        (0..10).for_each(|_| cost.learn_prompt(40, 0.004));
        assert!(cost.prompt_tokens(0.4) > 3_000);
        // A machine that is slower for good is believed in the end.
        (0..200).for_each(|_| cost.learn(1, 3e-3));
        assert!(cost.batch(1) > 2.8e-3);
    }
}
