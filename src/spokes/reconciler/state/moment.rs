//! The time of a change. It is an argument everywhere, so that tests choose it.

use std::ops::Add;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One moment on both clocks: one that never goes back, and one that people read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub instant: Instant,
    pub time: SystemTime,
}

impl Moment {
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    /// Milliseconds since 1970.
    pub fn millis(self) -> i64 {
        self.time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, pause: Duration) -> Self {
        Self { instant: self.instant + pause, time: self.time + pause }
    }
}
