//! llama-server's `timings`: the cost of an answer.

use serde::Serialize;
use serde_json::{Value, json};

use crate::engine::Usage;

/// The object that llama-server sends next to `usage`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(in crate::api) struct Timings {
    cache_n: u32,
    prompt_n: u32,
    prompt_ms: f64,
    prompt_per_token_ms: f64,
    prompt_per_second: f64,
    predicted_n: u32,
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_n: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_n_accepted: Option<u32>,
}

impl From<&Usage> for Timings {
    fn from(usage: &Usage) -> Self {
        // `prompt_n` counts decoded tokens, not cached ones.
        let prompt_n = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        let predicted_n = usage.completion_tokens;
        // The logits of the last prompt token choose the first token, so it takes no step of its
        // own.
        let steps = f64::from(predicted_n.saturating_sub(1));
        let drafted = usage.drafted_tokens > 0;
        Self {
            cache_n: usage.cached_tokens,
            prompt_n,
            prompt_ms: usage.prompt_ms,
            prompt_per_token_ms: ratio(usage.prompt_ms, f64::from(prompt_n)),
            prompt_per_second: ratio(f64::from(prompt_n) * 1e3, usage.prompt_ms),
            predicted_n,
            predicted_ms: usage.predicted_ms,
            predicted_per_token_ms: ratio(usage.predicted_ms, steps),
            predicted_per_second: ratio(steps * 1e3, usage.predicted_ms),
            draft_n: drafted.then_some(usage.drafted_tokens),
            draft_n_accepted: drafted.then_some(usage.accepted_tokens),
        }
    }
}

/// llama-server's `prompt_progress`: how much of a prompt has been processed.
pub(in crate::api) fn prompt_progress(read: u32, progress: &Usage) -> Value {
    json!({
        "total": progress.prompt_tokens,
        "cache": progress.cached_tokens,
        "processed": read,
        "time_ms": so_far(read, progress).prompt_ms.round(),
    })
}

/// The cost of processing this much of a prompt. Cached tokens cost nothing.
pub(in crate::api) fn so_far(read: u32, progress: &Usage) -> Usage {
    let prompt_ms = if read > progress.cached_tokens { progress.prompt_ms } else { 0.0 };
    Usage { prompt_tokens: read, prompt_ms, completion_tokens: 0, predicted_ms: 0.0, ..*progress }
}

/// A speed; 0 if no time has passed, because JSON has no infinity.
fn ratio(above: f64, below: f64) -> f64 {
    if below > 0.0 { above / below } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_not_counted_as_work_and_nothing_is_infinite() {
        let usage = Usage {
            prompt_tokens: 110,
            cached_tokens: 10,
            prompt_ms: 50.0,
            completion_tokens: 7,
            ..Usage::default()
        };
        let timings = Timings::from(&usage);
        assert_eq!((timings.cache_n, timings.prompt_n, timings.predicted_n), (10, 100, 7));
        let json = serde_json::to_value(timings).unwrap();
        assert_eq!(
            (&json["prompt_per_second"], &json["prompt_per_token_ms"]),
            (&2_000.0.into(), &0.5.into())
        );
        assert_eq!(json["predicted_per_second"], 0.0);
        assert!(json.get("draft_n").is_none());
        let seven = serde_json::to_value(Timings::from(&Usage { predicted_ms: 60.0, ..usage })).unwrap();
        assert_eq!(
            (&seven["predicted_per_second"], &seven["predicted_per_token_ms"]),
            (&100.0.into(), &10.0.into()),
            "six steps made seven tokens"
        );
        let start = so_far(10, &usage);
        assert_eq!((start.prompt_ms, Timings::from(&start).prompt_n), (0.0, 0));
        let half = prompt_progress(60, &usage);
        assert_eq!(half, json!({"total": 110, "cache": 10, "processed": 60, "time_ms": 50.0}));
        let drafted = Usage { drafted_tokens: 4, accepted_tokens: 3, ..Usage::default() };
        let json = serde_json::to_value(Timings::from(&drafted)).unwrap();
        assert_eq!((&json["draft_n"], &json["draft_n_accepted"]), (&4.into(), &3.into()));
    }
}
