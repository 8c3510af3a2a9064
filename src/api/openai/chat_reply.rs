//! Chat replies: the whole answer, and the chunks of a streamed one.

use serde::Serialize;

use crate::api::llama_server::timings::Timings;
use crate::engine::{FinishReason, Usage};

/// What every reply and chunk of one request carries.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Envelope {
    pub(super) id: String,
    pub(super) object: &'static str,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
}

/// A whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Reply {
    #[serde(flatten)]
    pub(super) envelope: Envelope,
    pub(super) choices: [Choice; 1],
    pub(super) usage: UsageReport,
    pub(super) timings: Timings,
}

#[derive(Debug, Serialize)]
pub(super) struct Choice {
    pub(super) index: u32,
    pub(super) message: Answer,
    pub(super) finish_reason: FinishReason,
}

#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) role: &'static str,
    pub(super) content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reasoning_content: String,
}

/// A piece of a streamed answer.
#[derive(Debug, Serialize)]
pub(super) struct Chunk<'a> {
    #[serde(flatten)]
    pub(super) envelope: &'a Envelope,
    /// One, or none in the chunk that carries the usage.
    pub(super) choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<UsageReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timings: Option<Timings>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChunkChoice {
    pub(super) index: u32,
    pub(super) delta: Delta,
    pub(super) finish_reason: Option<FinishReason>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<String>,
}

/// OpenAI's `usage`.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct UsageReport {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl From<&Usage> for UsageReport {
    fn from(usage: &Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
        }
    }
}
