//! Computes the next masks of constraints while the model computes, so that they are ready when it
//! is done.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread;

use super::constraint::{STACK, Session, Shared};

/// A thread that computes masks ahead, if a processor is free for it. Ends when this is dropped.
#[derive(Debug)]
pub struct Foresight {
    board: Option<Arc<Board>>,
}

/// The jobs of the thread.
#[derive(Debug, Default)]
struct Board {
    asked: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Asked {
    /// Sessions of the batch that is being computed, each with whether it will need a closing.
    /// Weak, because answers may end meanwhile.
    sessions: Vec<(Weak<Mutex<Session>>, bool)>,
    over: bool,
}

impl Board {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Body of the thread.
    fn look(&self) {
        loop {
            let mut asked = self.asked();
            let (session, closing) = loop {
                if asked.over {
                    return;
                }
                match asked.sessions.pop() {
                    Some(next) => break next,
                    None => asked = self.changed.wait(asked).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(asked);
            let Some(session) = session.upgrade() else { continue };
            match session.try_lock() {
                Ok(mut session) => session.foresee(closing),
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().foresee(closing),
                // The model was faster than this thread.
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }
}

impl Foresight {
    /// Starts the thread for an engine that computes with `threads` threads. An engine that uses
    /// all processors gets none: its threads wait for each other, so that the one that loses its
    /// processor would hold up all.
    pub fn start(threads: u32) -> Self {
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if processors > threads as usize { Self::with_thread() } else { Self { board: None } }
    }

    fn with_thread() -> Self {
        let board = Arc::<Board>::default();
        let own = Arc::clone(&board);
        let named = thread::Builder::new().name("masks".to_owned()).stack_size(STACK);
        match named.spawn(move || own.look()) {
            Ok(_) => Self { board: Some(board) },
            Err(error) => {
                tracing::warn!(%error, "masks are computed by the engine's own thread");
                Self { board: None }
            }
        }
    }

    /// Replaces the jobs of the thread by these sessions.
    pub fn look<'s>(&self, sessions: impl Iterator<Item = (&'s Shared, bool)>) {
        let Some(board) = &self.board else { return };
        let mut asked = board.asked();
        asked.sessions.clear();
        asked.sessions.extend(sessions.map(|(session, closing)| (Arc::downgrade(session), closing)));
        // The thread takes the last session first.
        asked.sessions.reverse();
        if !asked.sessions.is_empty() {
            board.changed.notify_one();
        }
    }
}

impl Drop for Foresight {
    fn drop(&mut self) {
        if let Some(board) = &self.board {
            board.asked().over = true;
            board.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::engine::Constraint;
    use crate::engine::constraint::Grammars;
    use crate::engine::vocabulary::tests::vocabulary;

    #[test]
    fn sessions_are_looked_ahead_in_and_what_is_over_is_let_go() {
        let grammars = Grammars::new(&vocabulary(&["ab", "cd"]).token_env()).unwrap();
        let session = || {
            let shape = grammars.shape(&Constraint::Regex("(ab|cd){3,9}".to_owned())).unwrap();
            Arc::new(Mutex::new(grammars.begin(*shape)))
        };
        let foresight = Foresight::with_thread();
        let board = Arc::downgrade(foresight.board.as_ref().unwrap());
        let all: Vec<Shared> = (0..4).map(|_| session()).collect();
        let gone = Arc::downgrade(&session());
        let began = Instant::now();
        while !all.iter().all(|session| session.lock().unwrap().is_foreseen()) {
            foresight.look(all.iter().map(|session| (session, false)));
            assert!(began.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(1));
        }
        assert!(gone.upgrade().is_none());
        let last = session();
        foresight.look(std::iter::once((&last, false)));
        assert!(Arc::strong_count(&last) <= 2, "what waits holds nothing");
        drop(foresight);
        while board.upgrade().is_some() {
            assert!(began.elapsed() < Duration::from_secs(20), "its thread ends with it");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
