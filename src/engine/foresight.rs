//! What constraints will admit next, found out while the model computes: by the time that it has, masks are there.

use std::sync::{TryLockError, mpsc};
use std::thread;

use super::constraint::{STACK, Shared};

/// A thread that looks ahead, where a processor is free for it.
#[derive(Debug)]
pub struct Foresight {
    jobs: Option<mpsc::Sender<(Shared, bool)>>,
}

impl Foresight {
    /// For an engine that computes with so many threads. One that uses all processors would only be held up: its threads wait
    /// for each other, and so for the one that gives way.
    pub fn start(threads: u32) -> Self {
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if processors <= threads as usize {
            return Self { jobs: None };
        }
        let (jobs, received) = mpsc::channel::<(Shared, bool)>();
        let look = move || {
            for (session, closing) in received {
                match session.try_lock() {
                    Ok(mut session) => session.foresee(closing),
                    Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().foresee(closing),
                    // The model was faster.
                    Err(TryLockError::WouldBlock) => {}
                }
            }
        };
        let started = thread::Builder::new().name("masks".to_owned()).stack_size(STACK).spawn(look);
        if let Err(error) = &started {
            tracing::warn!(%error, "masks are computed by the engine's own thread");
        }
        Self { jobs: started.is_ok().then_some(jobs) }
    }

    /// Has this session looked ahead in.
    pub fn look(&self, session: impl FnOnce() -> Option<(Shared, bool)>) {
        if let Some(jobs) = &self.jobs
            && let Some(session) = session()
        {
            // Without the thread nothing is foreseen, and nothing is wrong.
            let _ = jobs.send(session);
        }
    }
}
