//! What a known head saves: the time to the first piece of two requests that begin alike, where nobody began so before.

use std::time::Duration;

use serde::Serialize;

use super::report::ms;
use super::statistics::{Percentiles, Spread};

/// Two requests with the same new head, one after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// Until the first piece of the first answer.
    pub first: Duration,
    /// Until the first piece of the second answer.
    pub second: Duration,
    /// Of the second prompt, the share that the server had computed before, if it tells.
    pub cached_share: Option<f64>,
}

/// All trials of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SharedPrefixFigures {
    /// With a new head.
    pub first_ttft_ms: Option<Percentiles>,
    /// With the head that the request before had.
    pub second_ttft_ms: Option<Percentiles>,
    /// Second over first, trial by trial.
    pub second_over_first: Option<Spread>,
    /// Mean share of the second prompt that the server had computed before, if it tells.
    pub cached_share: Option<f64>,
}

impl SharedPrefixFigures {
    /// Sums up trials.
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

/// Head figures of each endpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SharedPrefixReport {
    /// In the order of the endpoints.
    pub endpoints: Vec<SharedPrefixFigures>,
    /// First over second endpoint of the time to the first piece with a known head, trial by trial, if there are two.
    pub second_ttft: Option<Spread>,
}

impl SharedPrefixReport {
    /// Sums up the trials of each endpoint.
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
