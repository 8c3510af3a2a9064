//! What is known of one request beyond its HTTP: gathered where it becomes known, told when the answer has ended.

use std::sync::{Arc, Mutex, PoisonError};

use crate::task::TASKS;

tokio::task_local! {
    // Handlers pass nothing on and need to know nothing: whoever has something to tell finds the record of its request.
    static CURRENT: Arc<RequestContext>;
}

/// Facts of one request, shared by everything that works on it.
#[derive(Debug, Default)]
pub(in crate::api) struct RequestContext(Mutex<Facts>);

/// The facts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// Name of the task: one of those that are known, or "other".
    pub(super) task: Option<&'static str>,
    /// Name of the key that was shown.
    pub(super) key: Option<String>,
    pub(super) prompt_tokens: Option<u32>,
    pub(super) cached_tokens: Option<u32>,
    pub(super) completion_tokens: Option<u32>,
    /// Which spokes answered, in short.
    pub(super) spokes: Option<String>,
}

/// The task of requests whose schema has another name, or none.
pub(in crate::api) const OTHER: &str = "other";

impl RequestContext {
    /// That of the request that is being handled; an unheard one outside of any.
    pub(in crate::api) fn current() -> Arc<Self> {
        CURRENT.try_with(Arc::clone).unwrap_or_default()
    }

    /// Handles a request with this record as the current one.
    pub(super) async fn scope<T>(self: Arc<Self>, future: impl Future<Output = T>) -> T {
        CURRENT.scope(self, future).await
    }

    pub(super) fn facts(&self) -> Facts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Notes the name of the request's schema. Only known names are kept: a client must not fill a metric with its own.
    pub(in crate::api) fn set_schema_name(&self, name: Option<&str>) {
        let known = name.and_then(|name| TASKS.iter().find(|task| **task == name).copied());
        self.change(|facts| facts.task = Some(known.unwrap_or(OTHER)));
    }

    /// Notes who asked.
    pub(in crate::api) fn set_key(&self, name: String) {
        self.change(|facts| facts.key = Some(name));
    }

    /// Notes which spokes answer.
    pub(in crate::api) fn set_spokes(&self, spokes: String) {
        self.change(|facts| facts.spokes = Some(spokes));
    }

    /// Notes a prompt; a request may have several.
    pub(in crate::api) fn add_prompt(&self, tokens: u32, cached: u32) {
        self.change(|facts| {
            add(&mut facts.prompt_tokens, tokens);
            add(&mut facts.cached_tokens, cached);
        });
    }

    /// Notes tokens of an answer; a request may have several.
    pub(in crate::api) fn add_completion(&self, tokens: u32) {
        self.change(|facts| add(&mut facts.completion_tokens, tokens));
    }

    /// The task, for a metric.
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
