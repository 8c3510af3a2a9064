//! A teacher that somebody serves: asked for the likeliest tokens behind every token of an answer, one request each.
//!
//! `POST /completion` with token ids, `n_predict` 1 and `n_probs`, as llama-server and this program's daemon have it. The
//! server keeps the beginning that it has read, so a request costs it one token.

use std::sync::Arc;

use serde_json::{Value, json};

use super::stored::Answer;
use crate::train::TrainError;
use crate::train::batch::PackedRow;

/// Posts JSON to a path of the endpoint; gives the answer or what went wrong.
pub type Ask = Arc<dyn Fn(&str, &Value) -> Result<Value, String> + Send + Sync>;

const PATH: &str = "/completion";

pub(super) struct Served {
    endpoint: String,
    top: usize,
    ask: Ask,
}

impl Served {
    pub fn new(endpoint: &str, top: usize, ask: Option<Ask>) -> Result<Self, TrainError> {
        let none = || candle_core::Error::Msg("distil.endpoint needs an HTTP client".into());
        Ok(Self { endpoint: endpoint.to_owned(), top, ask: ask.ok_or_else(none)? })
    }

    /// What the teacher says before each answer token of the rows, in their order.
    pub fn answers(&self, rows: &[PackedRow]) -> Result<Vec<Answer>, TrainError> {
        let mut answers = Vec::new();
        for row in rows {
            for &(position, _) in &row.targets {
                let at = position as usize;
                let start = row.documents.iter().map(|&(start, _)| start).rfind(|start| *start <= at);
                answers.push(self.answer(&row.ids[start.unwrap_or(0)..=at])?);
            }
        }
        Ok(answers)
    }

    fn answer(&self, ids: &[u32]) -> Result<Answer, TrainError> {
        let wrong = |message: String| TrainError::Teacher { endpoint: self.endpoint.clone(), message };
        let request = json!({
            "prompt": ids, "n_predict": 1, "n_probs": self.top, "temperature": 0, "cache_prompt": true,
        });
        let reply = (self.ask)(PATH, &request).map_err(wrong)?;
        let list = reply["completion_probabilities"][0]["top_logprobs"].as_array();
        let list =
            list.ok_or_else(|| wrong("the answer has no completion_probabilities[0].top_logprobs".into()))?;
        let (mut tokens, mut probabilities) = (Vec::new(), Vec::new());
        for (at, entry) in list.iter().enumerate() {
            let key = |name: &str| format!("completion_probabilities[0].top_logprobs[{at}].{name}");
            let id = entry["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            let logprob = entry["logprob"].as_f64().filter(|logprob| logprob.is_finite() && *logprob < 1e-3);
            tokens.push(
                id.ok_or_else(|| wrong(format!("{} is {}, expected a token id", key("id"), entry["id"])))?,
            );
            let missing =
                || wrong(format!("{} is {}, expected a logarithm", key("logprob"), entry["logprob"]));
            probabilities.push(logprob.ok_or_else(missing)?.exp() as f32);
        }
        if tokens.is_empty() {
            return Err(wrong("the answer names no token".into()));
        }
        Ok(Answer::new(tokens, probabilities))
    }
}
