//! Facts about one request beyond its HTTP: collected where they become known, logged when the
//! answer has ended.

use std::sync::{Arc, Mutex, PoisonError};

use crate::task::TASKS;

tokio::task_local! {
    // A task-local, so that code deep in a handler reaches the record of its request without
    // passing it on.
    static CURRENT: Arc<RequestContext>;
}

/// Facts about one request, shared by all code that works on it.
#[derive(Debug, Default)]
pub(in crate::api) struct RequestContext(Mutex<Facts>);

/// The facts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// Name of the task: a known one, or "other".
    pub(super) task: Option<&'static str>,
    /// Name of the key that was presented.
    pub(super) key: Option<String>,
    pub(super) prompt_tokens: Option<u32>,
    pub(super) cached_tokens: Option<u32>,
    pub(super) completion_tokens: Option<u32>,
    /// The spokes that answered, in short form.
    pub(super) spokes: Option<String>,
}

/// Task of requests whose schema is unnamed or has an unknown name.
pub(in crate::api) const OTHER: &str = "other";

impl RequestContext {
    /// The record of the current request; outside of a request, one that is never read.
    pub(in crate::api) fn current() -> Arc<Self> {
        CURRENT.try_with(Arc::clone).unwrap_or_default()
    }

    /// Runs a request with this record as the current one.
    pub(super) async fn scope<T>(self: Arc<Self>, future: impl Future<Output = T>) -> T {
        CURRENT.scope(self, future).await
    }

    pub(super) fn facts(&self) -> Facts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Records the name of the request's schema. Only known names are kept, so that a client can't
    /// add labels to a metric.
    pub(in crate::api) fn set_schema_name(&self, name: Option<&str>) {
        let known = name.and_then(|name| TASKS.iter().find(|task| **task == name).copied());
        self.change(|facts| facts.task = Some(known.unwrap_or(OTHER)));
    }

    /// Records the key's name.
    pub(in crate::api) fn set_key(&self, name: String) {
        self.change(|facts| facts.key = Some(name));
    }

    /// Records the spokes that answer.
    pub(in crate::api) fn set_spokes(&self, spokes: String) {
        self.change(|facts| facts.spokes = Some(spokes));
    }

    /// Adds a prompt; a request may have several.
    pub(in crate::api) fn add_prompt(&self, tokens: u32, cached: u32) {
        self.change(|facts| {
            add(&mut facts.prompt_tokens, tokens);
            add(&mut facts.cached_tokens, cached);
        });
    }

    /// Adds tokens of an answer; a request may have several.
    pub(in crate::api) fn add_completion(&self, tokens: u32) {
        self.change(|facts| add(&mut facts.completion_tokens, tokens));
    }

    /// The task, as a metric label.
    pub(in crate::api) fn task(&self) -> &'static str {
        self.facts().task.unwrap_or(OTHER)
    }
}

fn add(to: &mut Option<u32>, more: u32) {
    *to = Some(to.unwrap_or(0).saturating_add(more));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_tasks_have_a_name() {
        let record = RequestContext::default();
        assert_eq!(record.task(), OTHER);
        record.set_schema_name(Some("encoding_response"));
        assert_eq!(record.task(), "encoding_response");
        record.set_schema_name(Some("made up by a client"));
        assert_eq!(record.task(), OTHER);
    }
}
