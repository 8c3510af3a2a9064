//! How many threads compute: all, or fewer while other programs keep the processors busy.
//!
//! llama.cpp's threads wait for each other by spinning, some hundred times per token. Where another program has taken one's
//! processor, all wait until it gets it back, each time for as long as the system lets the other run: with a compiler on both of
//! two cores, two threads made 7 tokens/s and one alone 680. What is best can't be known, but tried: now and then half or
//! twice as many, or still fewer or more, compute for some batches, and who is quicker stays. Where the number would change
//! results, nothing is tried.

use std::time::{Duration, Instant};

/// Time over which numbers of threads are compared.
const SPAN: f64 = 0.05;
/// Batches that a comparison needs.
const BATCHES: u32 = 4;
/// What another number must take of the time to be better.
const BETTER: f64 = 0.9;
/// Tries end early if they take so many times as long, at once or after some batches.
const HOPELESS: f64 = 4.0;
const WORSE: f64 = 1.2;
/// Batches that take so many times as long as so many threads should need are a reason to try soon.
const HELD_UP: f64 = 3.0;
/// Time between tries: at least, and at most unless tries are dear.
const SOON: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_secs(10);
/// How many times as long as a vain try nothing is tried.
const REST: u32 = 20;

/// Chooses how many threads compute.
#[derive(Debug)]
pub struct Crew {
    most: u32,
    /// Who compute while nothing is tried, and how they do.
    settled: u32,
    usual: Work,
    tried: Option<(u32, Work)>,
    /// Whether fewer are tried next, and how often their number is halved, or else doubled; after how long, and since when.
    fewer: bool,
    reach: u32,
    rest: Duration,
    since: Instant,
}

/// What batches should have taken, and did.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    expected: f64,
    seconds: f64,
    batches: u32,
}

impl Work {
    fn add(&mut self, expected: f64, seconds: f64) {
        self.expected += expected;
        self.seconds += seconds;
        self.batches += 1;
    }

    /// Older batches count for less.
    fn fade(&mut self) {
        let keep = (4.0 * SPAN / self.seconds.max(1e-9)).min(1.0);
        self.expected *= keep;
        self.seconds *= keep;
    }

    fn slowness(&self) -> f64 {
        self.seconds / self.expected.max(1e-9)
    }

    fn enough(&self) -> bool {
        self.batches >= BATCHES && self.seconds >= SPAN
    }
}

impl Crew {
    /// At most so many.
    pub fn new(most: u32, now: Instant) -> Self {
        let most = most.max(1);
        let (usual, since) = (Work::default(), now);
        Self { most, settled: most, usual, tried: None, fewer: true, reach: 1, rest: SOON, since }
    }

    /// How many compute the next batch.
    pub fn threads(&self) -> u32 {
        self.tried.map_or(self.settled, |(count, _)| count)
    }

    /// They have computed a batch of a price (seconds).
    pub fn worked(&mut self, price: f64, seconds: f64, now: Instant) {
        if self.most == 1 {
            return;
        }
        if let Some((count, mut work)) = self.tried {
            work.add(price, seconds);
            let usual = self.usual.slowness();
            let hopeless = work.seconds > HOPELESS * usual * work.expected + SPAN
                || work.batches >= BATCHES && work.slowness() > WORSE * usual;
            self.tried = (!hopeless && !work.enough()).then_some((count, work));
            if self.tried.is_none() {
                self.judge(count, work, !hopeless && work.slowness() < BETTER * usual, now);
            }
            return;
        }
        self.usual.add(price, seconds);
        self.usual.fade();
        let held_up = self.usual.slowness() > HELD_UP * f64::from(self.most) / f64::from(self.settled);
        let wait = if held_up { SOON.max(self.rest / 16) } else { self.rest };
        if self.usual.enough() && now >= self.since + wait {
            self.tried = Some((self.next(held_up), Work::default()));
        }
    }

    /// All, whatever was found out: for batches of which each thread count makes something else.
    pub fn stay(&mut self) {
        (self.settled, self.tried) = (self.most, None);
    }

    /// Who are tried: half, a quarter and so on down to one, then twice as many and so on up to all. Where batches are held
    /// up one is tried first, who waits for nobody: of sixteen with five processors, eight would lose each other too.
    fn next(&mut self, held_up: bool) -> u32 {
        let levels = self.settled.ilog2();
        for _ in 0..3 {
            let doubled = self.settled << (self.reach - 1);
            if self.fewer && self.reach <= levels {
                return self.settled >> if held_up { levels + 1 - self.reach } else { self.reach };
            }
            if !self.fewer && doubled < self.most {
                return self.most.min(doubled * 2);
            }
            (self.fewer, self.reach) = (!self.fewer, 1);
        }
        self.settled
    }

    fn judge(&mut self, count: u32, work: Work, better: bool, now: Instant) {
        self.since = now;
        if better {
            tracing::debug!(threads = count, instead_of = self.settled, "these compute quicker now");
            self.fewer &= count > 1 && count * 2 + 1 >= self.settled;
            (self.settled, self.usual, self.rest, self.reach) = (count, work, SOON, 1);
        } else {
            tracing::trace!(
                threads = count,
                seconds = work.seconds,
                times = work.slowness() / self.usual.slowness(),
                "these would not"
            );
            self.reach += 1;
            self.rest = (self.rest * 2).min(LATE).max(Duration::from_secs_f64(work.seconds) * REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches for some seconds on a machine that says what one takes with so many threads: how many were made, and the
    /// number of threads in the end.
    fn run(crew: &mut Crew, now: &mut Instant, seconds: f64, machine: impl Fn(u32) -> f64) -> (u32, u32) {
        let end = *now + Duration::from_secs_f64(seconds);
        let mut made = 0;
        while *now < end {
            let took = machine(crew.threads());
            *now += Duration::from_secs_f64(took);
            crew.worked(0.002, took, *now);
            made += 1;
        }
        (made, crew.settled)
    }

    fn free(most: u32) -> impl Fn(u32) -> f64 {
        move |threads| 0.002 * f64::from(most) / f64::from(threads)
    }

    /// So many processors are left; who has none holds the others up.
    fn busy(most: u32, left: u32) -> impl Fn(u32) -> f64 {
        move |threads| free(most)(threads) + if threads > left { 0.15 } else { 0.0 }
    }

    #[test]
    fn all_compute_where_processors_are_free() {
        for most in [2, 3, 16] {
            let mut now = Instant::now();
            let mut crew = Crew::new(most, now);
            let (made, settled) = run(&mut crew, &mut now, 60.0, free(most));
            assert_eq!(settled, most);
            assert!(made > 29_000, "{made} of 30,000 with {most}: trying costs too much");
        }
    }

    #[test]
    fn those_who_have_a_processor_compute_where_others_have_none() {
        for (most, left, best) in [(2, 1, 1), (16, 8, 8), (16, 5, 4), (16, 1, 1), (6, 3, 3)] {
            let mut now = Instant::now();
            let mut crew = Crew::new(most, now);
            run(&mut crew, &mut now, 5.0, free(most));
            let (made, settled) = run(&mut crew, &mut now, 60.0, busy(most, left));
            assert_eq!(settled, best, "of {most}, {left} have a processor");
            let ideal = 60.0 / free(most)(best);
            assert!(f64::from(made) > 0.8 * ideal, "{most}, {left}: {made} of {ideal}");
            // The others are gone.
            let (_, settled) = run(&mut crew, &mut now, 30.0, free(most));
            assert_eq!(settled, most, "all again");
        }
    }

    #[test]
    fn a_machine_that_is_busy_from_the_beginning_is_found_out() {
        let mut now = Instant::now();
        let mut crew = Crew::new(2, now);
        let (_, settled) = run(&mut crew, &mut now, 5.0, busy(2, 1));
        assert_eq!(settled, 1);
    }

    #[test]
    fn batches_that_grow_dearer_are_no_reason_to_send_anybody_away() {
        let mut now = Instant::now();
        let mut crew = Crew::new(2, now);
        run(&mut crew, &mut now, 5.0, free(2));
        let (made, settled) = run(&mut crew, &mut now, 60.0, |threads| 5.0 * free(2)(threads));
        assert_eq!(settled, 2);
        assert!(made > 5_500, "{made} of 6,000");
    }

    #[test]
    fn one_thread_stays_one() {
        let mut now = Instant::now();
        let mut crew = Crew::new(1, now);
        assert_eq!(run(&mut crew, &mut now, 5.0, |_| 0.01).1, 1);
        assert_eq!(crew.threads(), 1);
    }
}
