//! Overlap of held-out texts with training data: the share of their normalised 8-grams that occur
//! there.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Words per gram.
const GRAM: usize = 8;

/// The 8-grams of training texts. A shorter text is a single gram.
#[derive(Debug, Default)]
pub struct Seen {
    grams: HashSet<u64>,
}

/// A summary of the overlap of held-out texts.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Overlap {
    /// Texts of eight words or more, which the shares refer to.
    pub texts: usize,
    /// Mean share of a text's grams that occur in training.
    pub mean: f64,
    /// Share of texts with more than half of their grams in training.
    pub above_half: f64,
    /// Share of texts with all of their grams in training.
    pub contained: f64,
    /// Shorter texts ("ok", "it works now"), which are compared as a whole.
    pub short: usize,
    /// Share of these that occur in training.
    pub short_repeated: f64,
    /// Texts with the largest shares, largest first.
    pub worst: Vec<(String, f64)>,
}

impl Seen {
    /// Adds a training text.
    pub fn add(&mut self, text: &str) {
        self.grams.extend(grams(text));
    }

    /// Share of the text's grams that were added, 0 to 1; 0 for a text without words.
    pub fn share(&self, text: &str) -> f64 {
        let grams = grams(text);
        if grams.is_empty() {
            return 0.0;
        }
        grams.iter().filter(|gram| self.grams.contains(gram)).count() as f64 / grams.len() as f64
    }

    /// Compares held-out texts, given as `(id, text)`.
    pub fn overlap<'a>(&self, texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Overlap {
        let (mut shares, mut short): (Vec<(String, f64)>, Vec<f64>) = (Vec::new(), Vec::new());
        for (id, text) in texts {
            let share = self.share(text);
            if words(text).count() < GRAM { short.push(share) } else { shares.push((id.to_owned(), share)) }
        }
        let count = shares.len().max(1) as f64;
        let part = |least: f64| shares.iter().filter(|(_, share)| *share >= least).count() as f64 / count;
        let (above_half, contained) = (part(0.5 + f64::EPSILON), part(1.0));
        let mean = shares.iter().map(|(_, share)| share).sum::<f64>() / count;
        let short_repeated = short.iter().sum::<f64>() / short.len().max(1) as f64;
        let texts = shares.len();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        let worst = shares.into_iter().take(5).filter(|(_, share)| *share > 0.0).collect();
        Overlap { texts, mean, above_half, contained, short: short.len(), short_repeated, worst }
    }
}

/// Lower-case runs of letters and digits.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

fn grams(text: &str) -> Vec<u64> {
    let words: Vec<String> = words(text).collect();
    let hash = |gram: &[String]| {
        let mut hasher = DefaultHasher::new();
        gram.hash(&mut hasher);
        hasher.finish()
    };
    if words.len() < GRAM {
        return if words.is_empty() { Vec::new() } else { vec![hash(&words)] };
    }
    words.windows(GRAM).map(hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_count_normalised_grams() {
        let mut seen = Seen::default();
        seen.add("one two three four five six seven eight nine ten");
        assert!((seen.share("One, two; THREE four five six\nseven eight") - 1.0).abs() < 1e-12);
        assert!((seen.share("one two three four five six seven eight eleven") - 0.5).abs() < 1e-12);
        assert!(seen.share("one two three") < 1e-12, "short texts count only as a whole");
        seen.add("It works now!");
        let overlap = seen.overlap([
            ("a", "two three four five six seven eight nine"),
            ("b", "nothing of it"),
            ("c", "it works now"),
            ("d", "eight words of which not one gram was seen"),
        ]);
        assert_eq!((overlap.texts, overlap.contained, overlap.worst.len()), (2, 0.5, 1));
        assert_eq!((overlap.short, overlap.short_repeated), (2, 0.5));
    }
}
