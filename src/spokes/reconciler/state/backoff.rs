//! When a postponed instance is tried again.

use std::time::{Duration, Instant, SystemTime};

use super::moment::Moment;
use crate::spokes::reason_code::Code;

/// First pause before a retry. Each further pause is twice as long, up to a limit.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// The limit for expensive retries: a probe loads the post, a gate asks many questions.
const LONGEST_IF_EXPENSIVE: Duration = Duration::from_secs(600);

/// Postponements in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
    /// Code of the last postponement.
    code: Option<Code>,
    /// The next try.
    next: Option<Moment>,
}

impl Backoff {
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Forgets all tries: they ended in a verdict, or the file has changed.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Plans the next try after one that failed for this reason. Returns its time.
    pub fn plan(&mut self, code: &Code, now: Moment) -> Instant {
        self.tries += 1;
        let next = now + pause(self.tries, code);
        self.next = Some(next);
        next.instant
    }

    /// Whether it has waited for the same reason before.
    pub fn waits_for(&mut self, code: &Code) -> bool {
        self.code.replace(code.clone()).as_ref() == Some(code)
    }

    /// The next try, for people.
    pub fn due(&self) -> Option<SystemTime> {
        self.next.map(|next| next.time)
    }

    pub fn is_due(&self, at: Instant) -> bool {
        self.next.is_some_and(|next| next.instant == at)
    }
}

/// The pause after this many tries in a row.
fn pause(tries: u32, code: &Code) -> Duration {
    let longest = match code {
        Code::NotProbed | Code::GateFailed | Code::NotLoadedNow => LONGEST_IF_EXPENSIVE,
        _ => LONGEST,
    };
    FIRST.saturating_mul(1 << (tries.clamp(1, 16) - 1)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_that_is_higher_where_a_try_is_expensive() {
        let seconds = |code: &Code| [1, 2, 3, 6, 7, 11, 100].map(|tries| pause(tries, code).as_secs());
        assert_eq!(seconds(&Code::NotCopied), [1, 2, 4, 32, 60, 60, 60]);
        assert_eq!(seconds(&Code::NotProbed), [1, 2, 4, 32, 64, 600, 600]);
    }

    #[test]
    fn a_series_of_tries_lasts_until_it_is_reset() {
        let now = Moment::now();
        let mut backoff = Backoff::default();
        backoff.plan(&Code::NotRead, now);
        let at = backoff.plan(&Code::NotRead, now);
        assert_eq!((at - now.instant, backoff.tries()), (Duration::from_secs(2), 2));
        assert!(backoff.is_due(at) && !backoff.is_due(now.instant));
        assert!(!backoff.waits_for(&Code::NotRead) && backoff.waits_for(&Code::NotRead));
        assert!(!backoff.waits_for(&Code::NotCopied));
        backoff.reset();
        assert_eq!((backoff.tries(), backoff.due(), backoff.is_due(at)), (0, None, false));
        assert!(!backoff.waits_for(&Code::NotCopied));
    }
}
