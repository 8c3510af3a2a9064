//! A teacher on a server: one request per answer token asks for the most likely tokens.
//!
//! `POST /completion` with token ids, `n_predict` 1 and `n_probs`, as llama-server and this
//! program's daemon support it. The server caches the prefix, so a request costs it one token.

use std::sync::Arc;

use serde_json::{Value, json};

use super::logit_cache::{TopTokens, no_tokens};
use crate::text::tokenizer::Tokenizer;
use crate::train::TrainError;
use crate::train::batch::PackedRow;

/// Posts JSON to a path of the endpoint, or sends a GET if the value is null; returns the reply or
/// what went wrong.
pub type Ask = Arc<dyn Fn(&str, &Value) -> Result<Value, String> + Send + Sync>;

const PATH: &str = "/completion";
/// Texts that tokenizers split differently: numbers, spaces, code, other scripts, characters of
/// two UTF-16 units.
const TEXTS: [&str; 4] = [
    "The retry at 14:05 took 1240 ms (503).",
    "    if x != 0x3fA2 {\n\t\treturn;\n    }\n\n",
    "Größe, naïve, 日本語のテキスト, привет",
    "\u{1f469}\u{200d}\u{1f4bb} \u{2014} isn't `src/main.rs`",
];

pub(super) struct RemoteTeacher {
    endpoint: String,
    top: usize,
    /// Entries of the student's vocabulary.
    vocabulary: usize,
    ask: Ask,
}

impl RemoteTeacher {
    pub fn new(endpoint: &str, top: usize, vocabulary: usize, ask: Option<Ask>) -> Result<Self, TrainError> {
        let none = || candle_core::Error::Msg("distil.endpoint needs an HTTP client".into());
        Ok(Self { endpoint: endpoint.to_owned(), top, vocabulary, ask: ask.ok_or_else(none)? })
    }

    fn wrong(&self, message: String) -> TrainError {
        TrainError::Teacher { endpoint: self.endpoint.clone(), message }
    }

    /// Checks that the teacher tokenises texts as the student does.
    ///
    /// # Errors
    /// The first text whose tokens differ.
    pub fn check_tokens(&self, tokenizer: &Tokenizer) -> Result<(), TrainError> {
        for text in TEXTS {
            let expected = tokenizer.encode(text)?;
            let request = json!({"content": text, "add_special": false, "parse_special": false});
            let reply = (self.ask)("/tokenize", &request).map_err(|message| self.wrong(message))?;
            let found = serde_json::from_value::<Vec<u32>>(reply["tokens"].clone());
            let found = found.map_err(|_| self.wrong("/tokenize answers without a list of tokens".into()))?;
            if found != expected {
                return Err(self.wrong(format!(
                    "a teacher needs the student's tokenizer: it reads {text:?} as {found:?}, the student as {expected:?}"
                )));
            }
        }
        Ok(())
    }

    /// Distinguishes this teacher from others that the server may have.
    ///
    /// # Errors
    /// The server names no models.
    pub fn identity(&self) -> Result<String, TrainError> {
        let reply = (self.ask)("/v1/models", &Value::Null).map_err(|message| self.wrong(message))?;
        let models = reply["data"].as_array();
        let models = models.ok_or_else(|| self.wrong("/v1/models answers without data".into()))?;
        // Not the whole entry, because some servers include their start time.
        let models: Vec<String> =
            models.iter().map(|model| format!("{} {}", model["id"], model["meta"])).collect();
        Ok(format!("{}\n{}", self.endpoint, models.join("\n")))
    }

    /// The teacher's predictions of each answer token of the rows, in order.
    pub fn top_tokens(&self, rows: &[PackedRow]) -> Result<Vec<TopTokens>, TrainError> {
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

    fn answer(&self, ids: &[u32]) -> Result<TopTokens, TrainError> {
        let wrong = |message: String| self.wrong(message);
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
        if let Some(message) = no_tokens(&tokens, self.vocabulary) {
            return Err(wrong(message));
        }
        Ok(TopTokens::new(tokens, probabilities))
    }
}
