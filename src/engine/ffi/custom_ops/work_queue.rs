//! A queue of work that llama.cpp's threads divide among themselves.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Number of spins before a waiting thread yields its processor. Miri runs one thread at a time.
const PATIENCE: usize = if cfg!(miri) { 1 } else { 1 << 14 };

/// Units of work, each drawn by one thread.
#[derive(Debug, Default)]
pub struct WorkQueue {
    units: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

impl WorkQueue {
    /// Creates a queue of `units` units.
    pub fn new(units: usize) -> Self {
        Self { units, ..Self::default() }
    }

    /// Draws units and works on them until none is left.
    pub fn work(&self, mut unit: impl FnMut(usize)) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.units {
                return;
            }
            unit(index);
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    /// The unit that will be drawn next, by any thread; it may be beyond the last one. A thread
    /// that is about to finish its unit can prefetch what the next one reads. It doesn't draw the
    /// unit in advance: if units are few, that would take them away from idle threads.
    pub fn coming(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// Waits until all units are done, so that their results can be read. This can't deadlock: the
    /// threads that drew the units wait for nothing.
    pub fn wait(&self) {
        let mut turns = 0;
        while self.done.load(Ordering::Acquire) < self.units {
            turns += 1;
            if turns < PATIENCE {
                spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn each_unit_is_drawn_once_and_waiting_ends_when_all_are_done() {
        for units in [0, 1, 2, 20] {
            let queue = WorkQueue::new(units);
            let drawn: Vec<AtomicU32> = (0..units).map(|_| AtomicU32::new(0)).collect();
            let thread = || {
                queue.work(|unit| {
                    drawn[unit].fetch_add(1, Ordering::Relaxed);
                });
                queue.wait();
                assert!(drawn.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{drawn:?}");
                assert!(queue.coming() >= units);
            };
            std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(thread))));
        }
    }
}
