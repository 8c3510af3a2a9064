//! The learning rate over a run: linear warm-up, then cosine decay to a floor (Loshchilov & Hutter
//! 2017, without restarts).

/// Warm-up and cosine decay; the factor multiplies the rate of each optimiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Steps of the run.
    pub steps: u64,
    /// Steps of linear warm-up; the first step already has a rate above 0.
    pub warmup: u64,
    /// The rate at the last step, as a share of the peak.
    pub floor: f64,
}

impl Schedule {
    /// Factor of step `step` (1-based).
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let decay = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / decay).min(1.0);
        self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_peaks_and_ends_at_the_floor() {
        let schedule = Schedule { steps: 110, warmup: 10, floor: 0.1 };
        let close = |step, expected: f64| {
            let factor = schedule.factor(step);
            assert!((factor - expected).abs() < 1e-12, "step {step}: {factor}, expected {expected}");
        };
        close(1, 0.1);
        close(5, 0.5);
        close(10, 1.0);
        close(60, 0.55);
        close(110, 0.1);
        close(500, 0.1);
        assert!(Schedule { steps: 1, warmup: 0, floor: 0.0 }.factor(1) >= 0.0);
    }
}
