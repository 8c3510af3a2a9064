//! Which requests are accepted: a bounded number may wait, with a bounded number of tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::EngineError;

/// The limits of the queue, and what they are compared with.
#[derive(Debug)]
pub struct Admission {
    lanes: u32,
    queue: u32,
    queue_tokens: u64,
    load: Arc<Load>,
}

/// The accepted requests that have not ended.
#[derive(Debug, Default)]
struct Load {
    unfinished: AtomicU32,
    /// Estimated tokens of the waiting requests.
    tokens: AtomicU64,
}

/// Counts a request from its acceptance to its end, however it ends, and counts its tokens while it
/// waits.
#[derive(Debug)]
pub struct Ticket {
    load: Arc<Load>,
    tokens: u64,
}

impl Admission {
    /// Limits for an engine that answers `lanes` requests at the same time, with at most `queue`
    /// more that wait and about `queue_tokens` tokens of them together.
    pub fn new(lanes: u32, queue: u32, queue_tokens: u64) -> Self {
        Self { lanes: lanes.max(1), queue, queue_tokens, load: Arc::default() }
    }

    /// Accepts a request of about `tokens` tokens if the queue has room for it. While a lane is
    /// free, a request that takes one waits only for a moment, so its tokens don't count.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`]; [`EngineError::QueueTokens`].
    pub fn ticket(&self, tokens: u64, takes_lane: bool) -> Result<Ticket, EngineError> {
        let unfinished = self.load.unfinished.fetch_add(1, Ordering::SeqCst);
        let tokens = if takes_lane && unfinished < self.lanes { 0 } else { tokens };
        let waiting = self.load.tokens.fetch_add(tokens, Ordering::SeqCst);
        let ticket = Ticket { load: Arc::clone(&self.load), tokens };
        if unfinished >= self.lanes.saturating_add(self.queue) {
            return Err(EngineError::Overloaded { waiting: unfinished - self.lanes });
        }
        let (tokens, limit) = (waiting + tokens, self.queue_tokens);
        // A single request may wait, however long it is.
        if waiting > 0 && ticket.tokens > 0 && tokens > limit {
            return Err(EngineError::QueueTokens { tokens, limit });
        }
        Ok(ticket)
    }
}

impl Ticket {
    /// The request has stopped waiting: its tokens no longer count.
    pub fn admitted(&mut self) {
        self.load.tokens.fetch_sub(std::mem::take(&mut self.tokens), Ordering::SeqCst);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admitted();
        self.load.unfinished.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_and_queue_limit_the_number_of_requests() {
        let admission = Admission::new(2, 1, u64::MAX);
        let mut held: Vec<Ticket> = (0..3).map(|_| admission.ticket(5, true).unwrap()).collect();
        assert_eq!(admission.ticket(5, true).unwrap_err(), EngineError::Overloaded { waiting: 1 });
        held.pop();
        assert!(admission.ticket(5, true).is_ok(), "a refused request is not counted");
    }

    #[test]
    fn tokens_count_while_a_request_waits() {
        let admission = Admission::new(1, 9, 10);
        let in_lane = admission.ticket(1_000, true).unwrap();
        let mut alone = admission.ticket(1_000, true).unwrap();
        let refused = EngineError::QueueTokens { tokens: 1_001, limit: 10 };
        assert_eq!(admission.ticket(1, true).unwrap_err(), refused);
        alone.admitted();
        let texts = admission.ticket(4, false).unwrap();
        assert!(admission.ticket(6, true).is_ok());
        assert_eq!(
            admission.ticket(7, true).unwrap_err(),
            EngineError::QueueTokens { tokens: 11, limit: 10 }
        );
        drop((in_lane, alone, texts));
        assert_eq!(admission.load.tokens.load(Ordering::SeqCst), 0);
        assert_eq!(admission.load.unfinished.load(Ordering::SeqCst), 0);
    }
}
