//! The benefit of a cached prefix: the time to the first piece of two requests with the same new
//! prefix.

use std::time::Duration;

use serde::Serialize;

use super::report::ms;
use super::statistics::{Percentiles, Spread};

/// Two consecutive requests with the same new prefix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// Time to the first piece of the first answer.
    pub first: Duration,
    /// Time to the first piece of the second answer.
    pub second: Duration,
    /// The share of the second prompt that was in the server's cache, if it reports that.
    pub cached_share: Option<f64>,
}

/// All trials of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SharedPrefixFigures {
    /// Time with a new prefix.
    pub first_ttft_ms: Option<Percentiles>,
    /// Time with the prefix of the request before.
    pub second_ttft_ms: Option<Percentiles>,
    /// Second over first, per trial.
    pub second_over_first: Option<Spread>,
    /// Mean share of the second prompt that was in the server's cache, if it reports that.
    pub cached_share: Option<f64>,
}

impl SharedPrefixFigures {
    /// Combines trials.
    pub fn new(trials: &[Trial]) -> Self {
        let shares: Option<Vec<f64>> = trials.iter().map(|trial| trial.cached_share).collect();
        Self {
            first_ttft_ms: Percentiles::of(trials.iter().map(|trial| ms(trial.first))),
            second_ttft_ms: Percentiles::of(trials.iter().map(|trial| ms(trial.second))),
            second_over_first: Spread::of_ratios(
                trials.iter().map(|trial| (ms(trial.second), ms(trial.first))),
            ),
            cached_share: shares
                .filter(|shares| !shares.is_empty())
                .map(|shares| shares.iter().sum::<f64>() / shares.len() as f64),
        }
    }
}

/// The figures of each endpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SharedPrefixReport {
    /// In the order of the endpoints.
    pub endpoints: Vec<SharedPrefixFigures>,
    /// Ratio of the first to the second endpoint's time with a cached prefix, per trial, if there
    /// are two.
    pub second_ttft: Option<Spread>,
}

impl SharedPrefixReport {
    /// Combines the trials of each endpoint.
    pub fn new(trials: &[Vec<Trial>]) -> Self {
        let second_ttft = match trials {
            [ours, theirs] => {
                let pairs =
                    ours.iter().zip(theirs).map(|(ours, theirs)| (ms(ours.second), ms(theirs.second)));
                Spread::of_ratios(pairs)
            }
            _ => None,
        };
        Self {
            endpoints: trials.iter().map(|trials| SharedPrefixFigures::new(trials)).collect(),
            second_ttft,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trials_are_compared_with_themselves_and_across_endpoints() {
        let trial = |first, second| Trial {
            first: Duration::from_millis(first),
            second: Duration::from_millis(second),
            cached_share: Some(0.5),
        };
        let ours = vec![trial(100, 10), trial(200, 40), trial(100, 30)];
        let theirs =
            ours.iter().map(|trial| Trial { second: trial.second * 2, cached_share: None, ..*trial });
        let report = SharedPrefixReport::new(&[ours.clone(), theirs.collect()]);
        let figures = report.endpoints[0];
        assert_eq!(figures.second_over_first, Some(Spread { median: 0.2, min: 0.1, max: 0.3 }));
        assert_eq!((figures.cached_share, report.endpoints[1].cached_share), (Some(0.5), None));
        assert_eq!(report.second_ttft, Some(Spread { median: 0.5, min: 0.5, max: 0.5 }));
    }
}
