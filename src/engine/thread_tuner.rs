//! Chooses how many threads compute: all, or fewer while other programs keep the processors busy.
//!
//! llama.cpp's threads wait for each other by spinning, some hundred times per token. If another
//! program has taken one thread's processor, all threads wait until it gets the processor back,
//! each time for as long as the system lets the other program run. With a compiler on both of two
//! cores, two threads made 7 tokens/s and one alone 680. The best number can't be known in advance,
//! so it is tried: now and then, half or twice as many threads, or still fewer or more, compute
//! some batches, and the faster number stays. Where the number of threads would change results,
//! nothing is tried.
//!
//! The run-queue wait in /proc/self/task/*/schedstat can't replace the tries. It shows that there
//! are too many threads, but not when more would get a processor: threads that don't run don't
//! wait. It doesn't see time that a hypervisor steals or two threads of one core take from each
//! other, and exists on Linux alone. Nor can the threads wait passively: ggml's `poll` setting only
//! covers the time between graphs, and its barriers within a graph always spin.

use std::time::{Duration, Instant};

use super::ffi::Context;

/// Seconds over which numbers of threads are compared.
const SPAN: f64 = 0.05;
/// Minimum number of batches in a comparison.
const BATCHES: u32 = 4;
/// Another number is better if it takes less than this fraction of the time.
const BETTER: f64 = 0.9;
/// A try ends early if it takes this many times as long: `HOPELESS` at once, `WORSE` after
/// `BATCHES` batches or `SPAN` seconds.
const HOPELESS: f64 = 4.0;
const WORSE: f64 = 1.2;
/// Batches that take this many times as long as expected are a reason to try soon.
const HELD_UP: f64 = 3.0;
/// Minimum and maximum time between tries. The time is longer after an expensive try.
const SOON: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_secs(10);
/// After a failed try, nothing is tried for this many times its duration.
const REST: u32 = 20;
/// Maximum undisturbed seconds of a batch in a try, unless the batch takes at least half as long at
/// present. Longer batches, mostly of prompts, don't take part in tries.
const LONG: f64 = 0.5;
/// Number of such batches after which a try is given up.
const PASSED: u32 = 16;
/// After this long without a batch, the speed of earlier batches means nothing any more.
const STALE: Duration = Duration::from_secs(1);

/// Chooses how many threads compute.
#[derive(Debug)]
pub struct ThreadTuner {
    most: u32,
    /// Number of threads while nothing is tried, and their recent speed.
    settled: u32,
    usual: Work,
    tried: Option<Try>,
    /// Whether the current batch takes part in the try.
    trying: bool,
    /// State of the search: whether fewer threads are tried next or more, by how many halvings or
    /// doublings, after which time, and since when.
    fewer: bool,
    reach: u32,
    rest: Duration,
    since: Instant,
    /// When the last batch ended.
    last: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Try {
    threads: u32,
    work: Work,
    passed: u32,
}

/// Expected and measured time of batches.
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

    /// Makes older batches count for less.
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

impl ThreadTuner {
    /// Creates a tuner for at most `most` threads.
    pub fn new(most: u32, now: Instant) -> Self {
        let most = most.max(1);
        Self {
            most,
            settled: most,
            usual: Work::default(),
            tried: None,
            trying: false,
            fewer: true,
            reach: 1,
            rest: SOON,
            since: now,
            last: now,
        }
    }

    /// Sets the number of threads for the context's next batch of this price, and returns it. All
    /// threads compute where the number would change results.
    pub fn lead(&mut self, context: &mut Context<'_>, price: f64) -> u32 {
        if context.counts_threads() {
            (self.settled, self.tried) = (self.most, None);
        }
        let threads = self.begin(price);
        context.compute_with(threads);
        threads
    }

    /// Chooses the number of threads for the next batch. `price` is the seconds that the settled
    /// number of threads would need undisturbed.
    fn begin(&mut self, price: f64) -> u32 {
        let settled = f64::from(self.settled);
        match &mut self.tried {
            Some(tried) => {
                let times = (settled / f64::from(tried.threads)).max(1.0);
                self.trying = price * times <= LONG || times <= 2.0 * self.usual.slowness();
                tried.passed += u32::from(!self.trying);
            }
            None => self.trying = false,
        }
        self.tried.filter(|_| self.trying).map_or(self.settled, |tried| tried.threads)
    }

    /// Whether the current batch is computed by an unusual number of threads, so that it says
    /// nothing about usual cost.
    pub fn is_trying(&self) -> bool {
        self.trying
    }

    /// Records a computed batch.
    pub fn worked(&mut self, price: f64, seconds: f64, now: Instant) {
        if self.most == 1 {
            return;
        }
        if now.duration_since(self.last) > STALE + Duration::from_secs_f64(seconds) {
            self.usual = Work::default();
        }
        self.last = now;
        if self.trying
            && let Some(mut tried) = self.tried
        {
            let work = &mut tried.work;
            work.add(price, seconds);
            let usual = self.usual.slowness();
            let hopeless = work.seconds > HOPELESS * usual * work.expected + SPAN
                || (work.batches >= BATCHES || work.seconds >= SPAN) && work.slowness() > WORSE * usual;
            let over = hopeless || work.enough();
            self.tried = Some(tried);
            if over {
                self.judge(tried, !hopeless && tried.work.slowness() < BETTER * usual, now);
            }
            return;
        }
        self.usual.add(price, seconds);
        self.usual.fade();
        if let Some(tried) = self.tried {
            if tried.passed >= PASSED {
                self.judge(tried, false, now);
            }
            return;
        }
        let held_up = self.usual.slowness() > HELD_UP;
        let wait = if held_up { SOON.max(self.rest / 16) } else { self.rest };
        if self.usual.enough() && now >= self.since + wait {
            self.tried = Some(Try { threads: self.next(held_up), work: Work::default(), passed: 0 });
        }
    }

    /// Records a batch that was aborted or failed. If it took part in a try, the try may be why.
    pub fn interrupted(&mut self, now: Instant) {
        if self.trying
            && let Some(tried) = self.tried
        {
            self.judge(tried, false, now);
        }
    }

    /// The next number to try: a half, a quarter and so on down to one, then twice as many and so
    /// on up to all. If batches are held up, one thread is tried first, because it waits for no
    /// other: of sixteen threads on five free processors, eight would still hold each other up.
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

    fn judge(&mut self, tried: Try, better: bool, now: Instant) {
        let Try { threads, work, .. } = tried;
        (self.tried, self.trying, self.since) = (None, false, now);
        if better {
            tracing::debug!(threads, instead_of = self.settled, "switched to a faster number of threads");
            self.fewer &= threads > 1 && threads * 2 + 1 >= self.settled;
            (self.settled, self.usual, self.rest, self.reach) = (threads, work, SOON, 1);
        } else {
            let times = work.slowness() / self.usual.slowness();
            tracing::trace!(threads, seconds = work.seconds, times, "kept the number of threads");
            self.reach += 1;
            self.usual = Work::default();
            self.rest = (self.rest * 2).min(LATE).max(Duration::from_secs_f64(work.seconds) * REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::drafting::Cost;
    use crate::engine::scheduler::Price;

    /// A simulated machine, and an engine on it that learns prices as it goes.
    struct Bench {
        tuner: ThreadTuner,
        cost: Cost,
        now: Instant,
    }

    impl Bench {
        fn new(most: u32) -> Self {
            let now = Instant::now();
            Self { tuner: ThreadTuner::new(most, now), cost: Cost::default(), now }
        }

        fn batch(&mut self, machine: &impl Fn(u32) -> f64) {
            let price = self.cost.batch(1);
            let took = machine(self.tuner.begin(price));
            self.now += Duration::from_secs_f64(took);
            if !self.tuner.is_trying() {
                self.cost.learn(1, took);
            }
            self.tuner.worked(price, took, self.now);
        }

        /// Number of batches in this many seconds.
        fn run(&mut self, seconds: f64, machine: impl Fn(u32) -> f64) -> f64 {
            let end = self.now + Duration::from_secs_f64(seconds);
            let mut made = 0.0;
            while self.now < end {
                self.batch(&machine);
                made += 1.0;
            }
            made
        }
    }

    /// Seconds of a batch if each thread has a processor.
    fn free(most: u32, batch: f64) -> impl Fn(u32) -> f64 {
        move |threads| batch * f64::from(most) / f64::from(threads)
    }

    /// Only `left` processors are free; a thread without one holds the others up.
    fn busy(most: u32, batch: f64, left: u32) -> impl Fn(u32) -> f64 {
        move |threads| free(most, batch)(threads) + if threads > left { 75.0 * batch } else { 0.0 }
    }

    #[test]
    fn all_compute_where_processors_are_free() {
        for (most, batch) in [(2, 0.0008), (2, 0.002), (3, 0.01), (16, 0.002), (16, 0.06)] {
            let mut bench = Bench::new(most);
            let made = bench.run(120.0, free(most, batch));
            assert_eq!(bench.tuner.settled, most);
            assert!(made > 0.97 * 120.0 / batch, "{made} with {most}, {batch}: trying costs too much");
        }
    }

    #[test]
    fn those_who_have_a_processor_compute_where_others_have_none() {
        for (most, left, best) in [(2, 1, 1), (16, 8, 8), (16, 5, 4), (16, 1, 1), (6, 3, 3)] {
            for batch in [0.0008, 0.002, 0.01] {
                let case = format!("of {most}, {left} have a processor; {batch} s");
                let mut bench = Bench::new(most);
                bench.run(5.0, free(most, batch));
                let made = bench.run(120.0, busy(most, batch, left));
                assert_eq!(bench.tuner.settled, best, "{case}");
                let ideal = 120.0 / free(most, batch)(best);
                assert!(made > 0.75 * ideal, "{case}: {made} of {ideal}");
                // The other programs are gone.
                bench.run(120.0, free(most, batch));
                assert_eq!(bench.tuner.settled, most, "{case}: all again");
            }
        }
    }

    #[test]
    fn a_machine_that_is_busy_from_the_beginning_is_found_out() {
        let mut bench = Bench::new(2);
        bench.run(5.0, busy(2, 0.002, 1));
        assert_eq!(bench.tuner.settled, 1);
    }

    #[test]
    fn a_little_help_is_seen_too() {
        let mut bench = Bench::new(2);
        bench.run(5.0, free(2, 0.001));
        bench.run(60.0, |threads| if threads == 1 { 0.002 } else { 0.0026 });
        assert_eq!(bench.tuner.settled, 1);
    }

    #[test]
    fn batches_that_grow_dearer_are_no_reason_to_send_anybody_away() {
        let mut bench = Bench::new(2);
        bench.run(5.0, free(2, 0.002));
        let made = bench.run(60.0, free(2, 0.01));
        assert_eq!(bench.tuner.settled, 2);
        assert!(made > 5_500.0, "{made} of 6,000");
    }

    #[test]
    fn what_is_given_up_ends_a_try() {
        let mut bench = Bench::new(2);
        let machine = free(2, 0.002);
        while bench.tuner.tried.is_none() {
            bench.batch(&machine);
        }
        assert_eq!(bench.tuner.begin(0.4), 2, "too long for one");
        bench.tuner.interrupted(bench.now);
        assert!(bench.tuner.tried.is_some(), "it was not the try's");
        assert_eq!(bench.tuner.begin(0.002), 1);
        bench.tuner.interrupted(bench.now);
        assert_eq!((bench.tuner.begin(0.002), bench.tuner.tried.is_none()), (2, true));
    }

    #[test]
    fn how_quick_batches_were_is_forgotten() {
        let mut bench = Bench::new(2);
        bench.run(5.0, busy(2, 0.002, 0));
        bench.now += Duration::from_secs(3600);
        bench.batch(&free(2, 0.002));
        assert!(bench.tuner.usual.batches == 1 && bench.tuner.tried.is_none());
    }

    #[test]
    fn one_thread_stays_one() {
        let mut bench = Bench::new(1);
        bench.run(5.0, |_| 0.01);
        assert_eq!(bench.tuner.begin(0.01), 1);
    }
}
