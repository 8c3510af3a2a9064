//! Threads that share the work of one device.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::{Error, Result};

/// Tasks per thread that may run or wait for earlier ones: while one is late, each thread can end
/// the task that it has and do one more.
const AHEAD: usize = 2;

/// The threads of a setting, in which 0 means one per core.
pub fn thread_count(setting: usize) -> usize {
    if setting > 0 { setting } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

/// A pool of one thread for each worker, and a pool in which all threads work together.
pub struct Workers {
    pools: Vec<rayon::ThreadPool>,
    together: rayon::ThreadPool,
}

impl Workers {
    /// Starts so many threads, as [`thread_count`] reads the number.
    ///
    /// # Errors
    /// The system refuses more threads.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = thread_count(threads);
        let pool = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.map_err(|e| Error::Msg(format!("thread pool: {e}")))
        };
        let pools = (0..threads).map(|_| pool(1)).collect::<Result<_>>()?;
        Ok(Self { pools, together: pool(threads)? })
    }

    /// Runs work whose operations are each shared by all threads.
    pub fn together<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.together.install(work)
    }

    /// Runs tasks 0..count, each on one thread, as threads become free.
    ///
    /// # Errors
    /// The first error of any thread; the other threads finish what they can.
    pub fn each<E: Send>(
        &self,
        count: usize,
        piece: impl Fn(usize) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<(), E> {
        let next = AtomicUsize::new(0);
        let work = || -> std::result::Result<(), E> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(());
                }
                piece(index)?;
            }
        };
        std::thread::scope(|scope| {
            let pools = self.pools.iter().take(count);
            let threads: Vec<_> = pools.map(|pool| scope.spawn(|| pool.install(work))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().try_for_each(join)
        })
    }
    /// Runs tasks 0..count and gives their results to `take` in the order of their indices,
    /// whichever ends first.
    ///
    /// If there is a task for every thread, each task runs on a single thread: operations need no
    /// synchronisation, and the tensors of a task fit in the thread's cache. Fewer tasks run one
    /// after the other, with all threads sharing every operation; this suits large models, because
    /// memory holds only one result. A thread whose task is far ahead waits before it begins, so
    /// that few results are held back.
    ///
    /// # Errors
    /// The first error of any thread; no further task begins.
    pub fn ordered_reduce<T: Send, E: Send>(
        &self,
        count: usize,
        task: impl Fn(usize) -> std::result::Result<T, E> + Sync,
        mut take: impl FnMut(T) -> std::result::Result<(), E> + Send,
    ) -> std::result::Result<(), E> {
        if count < self.pools.len() {
            return (0..count).try_for_each(|index| take(self.together(|| task(index))?));
        }
        let queue = OrderedQueue::new(take, AHEAD * self.pools.len());
        self.each(count, |index| queue.run(index, || task(index)))
    }
}

/// Results that are taken in the order of their indices.
struct OrderedQueue<T, F> {
    state: Mutex<QueueState<T, F>>,
    /// Signals that results were taken, or that a task failed.
    moved: Condvar,
    /// Tasks from the next one to be taken that may begin.
    ahead: usize,
}

struct QueueState<T, F> {
    /// The index to be taken next.
    next: usize,
    waiting: BTreeMap<usize, T>,
    take: F,
    failed: bool,
}

impl<T, E, F: FnMut(T) -> std::result::Result<(), E>> OrderedQueue<T, F> {
    fn new(take: F, ahead: usize) -> Self {
        let state = QueueState { next: 0, waiting: BTreeMap::new(), take, failed: false };
        Self { state: Mutex::new(state), moved: Condvar::new(), ahead }
    }

    /// Runs a task when it is near enough and takes what can be taken then; does nothing after a
    /// failure.
    fn run(
        &self,
        index: usize,
        task: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(), E> {
        let mut state = self.lock();
        while !state.failed && index >= state.next + self.ahead {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed {
            return Ok(());
        }
        drop(state);
        // Also on a panic: the other threads must not wait for a result that never comes.
        let mut outcome = Outcome { queue: self, failed: true };
        let result = task()?;
        let mut state = self.lock();
        state.waiting.insert(index, result);
        let QueueState { next, waiting, take, .. } = &mut *state;
        while let Some(result) = waiting.remove(next) {
            take(result)?;
            *next += 1;
        }
        drop(state);
        outcome.failed = false;
        Ok(())
    }
}

impl<T, F> OrderedQueue<T, F> {
    fn lock(&self) -> MutexGuard<'_, QueueState<T, F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells a queue how a task ended.
struct Outcome<'a, T, F> {
    queue: &'a OrderedQueue<T, F>,
    failed: bool,
}

impl<T, F> Drop for Outcome<'_, T, F> {
    fn drop(&mut self) {
        self.queue.lock().failed |= self.failed;
        self.queue.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn results_are_taken_in_order_and_few_wait() {
        let workers = Workers::new(3).unwrap();
        let (begins, begun) = mpsc::channel();
        let begun = Mutex::new(begun);
        let mut taken = vec![];
        let task = |index| {
            if index > 0 {
                begins.send(index).unwrap();
                return Ok::<_, ()>(index);
            }
            // The first is late: five more may begin, and no sixth.
            let begun = begun.lock().unwrap();
            (1..6).for_each(|_| assert!(begun.recv().unwrap() < 6));
            assert!(begun.recv_timeout(Duration::from_millis(200)).is_err());
            Ok(index)
        };
        let take = |index| {
            taken.push(index);
            Ok(())
        };
        workers.ordered_reduce(20, task, take).unwrap();
        assert!(taken.iter().copied().eq(0..20), "{taken:?}");
    }

    #[test]
    fn a_task_that_fails_or_panics_lets_no_thread_wait_for_it() {
        let workers = Workers::new(2).unwrap();
        let run = |fail: fn() -> std::result::Result<(), usize>| {
            let done = AtomicUsize::new(0);
            let result = workers.ordered_reduce(
                1000,
                |index| {
                    done.fetch_add(1, Ordering::SeqCst);
                    if index == 3 { fail() } else { Ok(()) }
                },
                |()| Ok(()),
            );
            (result, done.into_inner())
        };
        let (result, done) = run(|| Err(7));
        assert_eq!(result, Err(7));
        // The tasks that may begin before it is known: no thread is further ahead.
        assert!(done <= 3 + 4, "{done}");
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(|| panic!("as planned"))));
        assert!(panicked.is_err());
        // What takes the results may fail too.
        let refused = workers.ordered_reduce(9, Ok, |index| if index == 5 { Err(index) } else { Ok(()) });
        assert_eq!(refused, Err(5));
    }

    #[test]
    fn fewer_tasks_than_threads_share_all_of_them() {
        let workers = Workers::new(3).unwrap();
        let mut taken = vec![];
        let threads = |_| Ok::<_, ()>(rayon::current_num_threads());
        workers
            .ordered_reduce(2, threads, |count| {
                taken.push(count);
                Ok(())
            })
            .unwrap();
        assert_eq!(taken, [3, 3]);
    }
}
