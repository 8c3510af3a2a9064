//! Work that llama.cpp's threads share out among themselves.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Turns of waiting before the processor is offered to others. Miri runs one thread at a time.
const PATIENCE: usize = if cfg!(miri) { 1 } else { 1 << 14 };

/// Units of work, each drawn by one thread.
#[derive(Debug, Default)]
pub struct WorkQueue {
    units: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

impl WorkQueue {
    /// So many units.
    pub fn new(units: usize) -> Self {
        Self { units, ..Self::default() }
    }

    /// Does units until all are drawn.
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

    /// The unit that is drawn next, by whichever thread comes first; it may be beyond the last one.
    /// A thread that is about to end its unit can have what that one reads brought near. It doesn't
    /// draw it already: where units are few, it would take them from threads that wait for work.
    pub fn coming(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// Waits until all units are done, so that what they wrote can be read. The threads that drew
    /// them need nobody to go on.
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
