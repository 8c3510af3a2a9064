//! Reports a running generation to the metrics and the access log.

use std::sync::Arc;

use tokio::time::Instant;

use super::request_context::RequestContext;
use crate::api::metrics::Metrics;
use crate::engine::{CloseReason, Usage};

/// The metrics of one generation.
#[derive(Debug)]
pub(in crate::api) struct AnswerMetrics {
    metrics: Arc<Metrics>,
    record: Arc<RequestContext>,
    begun: Instant,
    /// When the last text arrived.
    last: Option<Instant>,
    /// Whether to add the prompt to the record, which only the first answer to a prompt does.
    first: bool,
    /// Cached tokens added to the record so far.
    cached: u32,
}

impl AnswerMetrics {
    /// Starts to observe a generation of the current request.
    pub(in crate::api) fn begin(metrics: Arc<Metrics>, first: bool) -> Self {
        Self {
            metrics,
            record: RequestContext::current(),
            begun: Instant::now(),
            last: None,
            first,
            cached: 0,
        }
    }

    /// The prompt is accepted.
    pub(in crate::api) fn started(&mut self, prompt_tokens: u32, cached_tokens: u32) {
        if self.first {
            self.record.add_prompt(prompt_tokens, cached_tokens);
            self.cached = cached_tokens;
        }
    }

    /// The answer was kept from repeating itself.
    pub(in crate::api) fn closed(&self, why: CloseReason) {
        self.metrics.closed(why);
    }

    /// Text has arrived.
    pub(in crate::api) fn text(&mut self) {
        let now = Instant::now();
        match self.last.replace(now) {
            None => self.metrics.first_text(now - self.begun),
            Some(before) => self.metrics.more_text(now - before),
        }
    }

    /// The client left, with this much of the answer generated.
    pub(in crate::api) fn gone(&self, sofar: &Usage) {
        // A request that was never accepted has no answer, not even an empty one.
        if sofar.prompt_tokens > 0 {
            self.record.add_completion(sofar.completion_tokens);
        }
    }

    /// The answer is complete.
    pub(in crate::api) fn finished(&self, usage: &Usage) {
        if self.first {
            // The cache may have had more of the prompt than was known when it was accepted.
            self.record.add_prompt(0, usage.cached_tokens.saturating_sub(self.cached));
        }
        self.record.add_completion(usage.completion_tokens);
        self.metrics.answered(self.record.task(), usage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_answers_add_up_and_their_prompt_counts_once() {
        let record = Arc::new(RequestContext::default());
        let witness = |first| AnswerMetrics {
            record: Arc::clone(&record),
            ..AnswerMetrics::begin(Arc::default(), first)
        };
        let usage = |cached_tokens, completion_tokens| Usage {
            prompt_tokens: 20,
            cached_tokens,
            completion_tokens,
            ..Usage::default()
        };
        let (mut first, mut second, mut left) = (witness(true), witness(false), witness(false));
        first.started(20, 5);
        second.started(20, 19);
        left.started(20, 19);
        second.finished(&usage(19, 7));
        first.finished(&usage(8, 4));
        left.gone(&usage(19, 2));
        let facts = record.facts();
        assert_eq!(
            (facts.prompt_tokens, facts.cached_tokens, facts.completion_tokens),
            (Some(20), Some(8), Some(13))
        );
    }
}
