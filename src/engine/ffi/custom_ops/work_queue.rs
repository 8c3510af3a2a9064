//! Work that llama.cpp's threads share out among themselves.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Turns of waiting before the processor is offered to others.
const PATIENCE: usize = 1 << 14;

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

    /// The unit that is drawn next, by whichever thread comes first; it may be beyond the last one. A thread that is about
    /// to end its unit can have what that one reads brought near. It doesn't draw it already: where units are few, it would
    /// take them from threads that wait for work.
    pub fn coming(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// Waits until all units are done, so that what they wrote can be read. The threads that drew them need nobody to go on.
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
