//! The fields that chat, text completion and `/completion` share, as written.

use serde::Deserialize;
use serde_json::Value;

use super::constraint::ResponseFormat;

/// Fields that are neither here, nor specific to an endpoint, nor in [`super::unsupported`] don't
/// affect the answer and are ignored: `user`, `metadata`, `store`, `id_slot` and others.
#[derive(Debug, Default, Deserialize)]
pub(in crate::api) struct AnswerFields {
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) timings_per_token: Option<bool>,
    pub(super) return_progress: Option<bool>,
    pub(super) verbose: Option<bool>,
    pub(super) n: Option<i64>,
    pub(super) best_of: Option<i64>,
    pub(super) max_tokens: Option<i64>,
    pub(super) max_completion_tokens: Option<i64>,
    pub(super) n_predict: Option<i64>,
    #[serde(default)]
    pub(super) stop: Stop,
    pub(super) ignore_eos: Option<bool>,
    pub(super) cache_prompt: Option<bool>,
    pub(super) draft: Option<bool>,
    #[serde(rename = "speculative.n_max")]
    pub(super) speculative: Option<u32>,

    pub(super) response_format: Option<ResponseFormat>,
    /// llama-server's: a schema directly in the body.
    pub(super) json_schema: Option<Value>,
    /// llama-server's: GBNF, or llguidance's Lark after its marker.
    pub(super) grammar: Option<String>,
    /// Our extension.
    pub(super) regex: Option<String>,

    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f64>,
    pub(super) seed: Option<i64>,
    pub(super) repeat_penalty: Option<f64>,
    /// vLLM's name for it.
    pub(super) repetition_penalty: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) repeat_last_n: Option<i64>,
    pub(super) logit_bias: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

/// `null`, one text, or several.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub(super) enum Stop {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl AnswerFields {
    /// The name of the answer's schema, which tells the task.
    pub(in crate::api) fn schema_name(&self) -> Option<&str> {
        self.response_format.as_ref()?.schema_name()
    }
}
