//! What a generation tells metrics and access log while it runs.

use std::sync::Arc;

use tokio::time::Instant;

use super::record::Record;
use crate::api::metrics::Metrics;
use crate::engine::Usage;

/// One generation as it is watched.
#[derive(Debug)]
pub(in crate::api) struct Witness {
    metrics: Arc<Metrics>,
    record: Arc<Record>,
    begun: Instant,
    /// When the last text came.
    last: Option<Instant>,
}

impl Witness {
    /// Of the current request's generation, which begins now.
    pub(in crate::api) fn begin(metrics: Arc<Metrics>) -> Self {
        Self { metrics, record: Record::current(), begun: Instant::now(), last: None }
    }

    /// The prompt is accepted.
    pub(in crate::api) fn started(&self, prompt_tokens: u32, cached_tokens: u32) {
        self.record.set_prompt(prompt_tokens, cached_tokens);
    }

    /// Text has come.
    pub(in crate::api) fn text(&mut self) {
        let now = Instant::now();
        match self.last.replace(now) {
            None => self.metrics.first_text(now - self.begun),
            Some(before) => self.metrics.more_text(now - before),
        }
    }

    /// The answer is whole.
    pub(in crate::api) fn finished(&self, usage: &Usage) {
        self.record.set_usage(usage);
        self.metrics.answered(self.record.task(), usage);
    }
}
