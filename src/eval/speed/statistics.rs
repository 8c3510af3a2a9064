//! Percentiles of many values, and the spread of a few.

use serde::Serialize;

/// The smallest value that at least `percent` of the sorted values don't exceed (nearest rank); 0
/// if there are none.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent * sorted.len() as f64 / 100.0).ceil() as usize;
    let last = sorted.len().saturating_sub(1);
    sorted.get(rank.saturating_sub(1).min(last)).copied().unwrap_or_default()
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The reported percentiles of a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Percentiles {
    /// Of these values in any order; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let sorted = sorted(values);
        let at = |percent| percentile(&sorted, percent);
        (!sorted.is_empty()).then(|| Self { p50: at(50.0), p90: at(90.0), p99: at(99.0) })
    }
}

/// The spread of a few values, such as the ratios of pairs of rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median; for an even number of values, the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these values in any order; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let sorted = sorted(values);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { median, min, max })
    }

    /// The spread of the ratios of pairs; pairs without a ratio (nothing measured on one side) are
    /// ignored.
    pub fn of_ratios(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let usable = |(above, below): &(f64, f64)| *above > 0.0 && *below > 0.0;
        Self::of(pairs.into_iter().filter(usable).map(|(above, below)| above / below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_by_nearest_rank() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        let at = |percent| percentile(&values, percent);
        assert_eq!((at(0.0), at(50.0), at(95.0), at(100.0)), (1.0, 10.0, 19.0, 20.0));
        assert_eq!((percentile(&values[..1], 95.0), percentile(&[], 50.0)), (1.0, 0.0));
        let of = Percentiles::of((1..=200).rev().map(f64::from)).unwrap();
        assert_eq!((of.p50, of.p90, of.p99), (100.0, 180.0, 198.0));
        assert_eq!(Percentiles::of([]), None);
    }

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // The ratio of the medians would be 20 / 10. Only ratios per pair cancel out a slow phase
        // of the machine.
        let pairs = [(30.0, 10.0), (3.0, 2.0), (20.0, 20.0), (0.0, 5.0), (5.0, 0.0)];
        assert_eq!(Spread::of_ratios(pairs), Some(Spread { median: 1.5, min: 1.0, max: 3.0 }));
    }
}
