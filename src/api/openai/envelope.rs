//! Shared parts of replies and chunks of chat and text completions.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::api::app::App;
use crate::api::spokes::Chosen;
use crate::api::timings::Timings;
use crate::engine::{Closed, Usage};

/// Fields of every reply and chunk of one request.
#[derive(Debug, Clone)]
pub(in crate::api) struct Envelope {
    pub(in crate::api) id: String,
    object: &'static str,
    /// Seconds since 1970.
    pub(in crate::api) created: u64,
    pub(in crate::api) model: String,
    /// The spokes that answer.
    pub(in crate::api) spokes: Option<Value>,
}

impl Envelope {
    /// For a request that arrives now; its id starts with `prefix`.
    pub(super) fn new(app: &App, prefix: &str, object: &'static str, spokes: &Chosen) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let id = format!("{prefix}{:032x}", rand::random::<u128>());
        Self { id, object, created, model: app.model_id().to_owned(), spokes: spokes.field() }
    }

    /// A reply or chunk with these choices.
    pub(super) fn around(&self, choices: Vec<Value>) -> Value {
        let mut reply = json!({
            "id": self.id, "object": self.object, "created": self.created, "model": self.model, "choices": choices,
        });
        if let Some(spokes) = &self.spokes {
            reply["spokes"] = spokes.clone();
        }
        reply
    }
}

/// OpenAI's `usage`.
pub(super) fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

/// Our extension: where the answer was kept from repeating itself, if it was.
pub(in crate::api) fn tell_closed(choice: &mut Value, closed: &[Closed]) {
    if !closed.is_empty() {
        choice["closed"] = serde_json::to_value(closed).unwrap_or_default();
    }
}

/// llama-server's `timings`.
pub(in crate::api) fn timings(usage: &Usage) -> Value {
    serde_json::to_value(Timings::from(usage)).unwrap_or_default()
}
