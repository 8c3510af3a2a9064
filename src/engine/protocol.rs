//! The interface of an engine: requests and events as plain data.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::computing::ComputingReport;
use super::error::EngineError;
use super::guard::{Closed, Guard};
use super::spoke::{LoadedSpoke, SpokeChange, SpokeSet};
pub use crate::text::{Prompt, Segment};

/// An engine owns a model and answers requests for it. It is cheap to share, and every method
/// returns at once.
pub trait Engine: Send + Sync + 'static {
    /// Queues a generation. Dropping the receiver cancels it: generation stops before the next
    /// token. Errors that can be detected without the model (queue full, engine stopped) are
    /// returned here; all others arrive as [`AnswerEvent::Failed`].
    fn generate(&self, request: Generate) -> Result<mpsc::UnboundedReceiver<AnswerEvent>, EngineError>;

    /// Queues texts for embedding. Returns one mean-pooled, L2-normalised vector of shape
    /// `[n_embd]` per input.
    fn embed(
        &self,
        inputs: Vec<Prompt>,
    ) -> Result<oneshot::Receiver<Result<Embeddings, EngineError>>, EngineError>;

    /// Queues a small query: token ids of a text, bytes of token ids, or the state of the lanes.
    fn query(&self, query: Query) -> Result<oneshot::Receiver<Result<Reply, EngineError>>, EngineError>;

    /// Loads or frees a spoke between two batches. A request that names a generation that isn't
    /// loaded fails with [`EngineError::SpokeNotLoaded`].
    fn spoke(
        &self,
        change: SpokeChange,
    ) -> Result<oneshot::Receiver<Result<LoadedSpoke, EngineError>>, EngineError> {
        let _ = change;
        Err(EngineError::SpokesUnsupported)
    }

    /// State and heartbeat of the engine's thread.
    fn health(&self) -> watch::Receiver<Health>;

    /// Finishes running requests for at most `drain`, fails the rest, and ends the thread.
    fn stop(&self, drain: Duration);
}

/// Bytes per token, a cautious estimate.
const BYTES_PER_TOKEN: u64 = 3;

/// Estimates the tokens of a prompt without tokenising it: tokenising is the engine's work, and
/// this is needed before the request is queued.
pub fn likely_tokens(prompt: &Prompt) -> u64 {
    prompt.iter().map(|segment| segment.text.len() as u64 / BYTES_PER_TOKEN + segment.ids.len() as u64).sum()
}

/// Estimates the tokens of prompt and answer together, capped at the context size.
pub fn likely_use(prompt: &Prompt, max_tokens: Option<u32>, context: u32) -> u64 {
    let answer = max_tokens.unwrap_or(context);
    likely_tokens(prompt).saturating_add(answer.into()).min(context.into())
}

/// A small query to the engine's thread, answered between two batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Token ids of a text. With `whole`, the ids are exactly those that [`Engine::generate`] would
    /// use: a beginning-of-sequence token is added if the model wants one, and an empty prompt is
    /// an error. Otherwise, only the ids of the text itself.
    Tokenize {
        /// The text.
        prompt: Prompt,
        /// Whether the text is a whole prompt.
        whole: bool,
    },
    /// Token ids of each of these texts, as with `whole: false`.
    TokenizeAll(Vec<Prompt>),
    /// Bytes of each of these tokens. Control tokens are given by name.
    Pieces(Vec<u32>),
    /// State of each lane.
    Lanes,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`Query::Tokenize`].
    Tokens(Vec<u32>),
    /// To [`Query::TokenizeAll`].
    AllTokens(Vec<Vec<u32>>),
    /// To [`Query::Pieces`].
    Pieces(Vec<Vec<u8>>),
    /// To [`Query::Lanes`].
    Lanes(Vec<LaneState>),
}

/// State of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneState {
    /// Number of the lane, from 0.
    pub lane: u32,
    /// Id of the request in the lane.
    pub request: Option<String>,
    /// Serial number of that request. Later requests have larger numbers.
    pub task: u64,
    /// Tokens of that request's prompt.
    pub prompt_tokens: u32,
    /// Tokens of its answer so far.
    pub completion_tokens: u32,
    /// Tokens of its prompt that were taken from the KV cache.
    pub cached_tokens: u32,
}

/// A request for text.
#[allow(clippy::struct_excessive_bools, reason = "switches that have nothing to do with each other")]
#[derive(Debug, Clone, PartialEq)]
pub struct Generate {
    /// Id for logs and traces.
    pub id: String,
    /// The prompt.
    pub prompt: Prompt,
    /// Spokes that the post runs with.
    pub spokes: SpokeSet,
    /// Maximum tokens to generate. `None` uses the rest of the context.
    pub max_tokens: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Added to the logits of these tokens before any other processing. A bias of -100 or less bans
    /// a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end the answer. They are not part of it.
    pub stop: Vec<String>,
    /// The shape that the answer must have.
    pub constraint: Option<Constraint>,
    /// Never chooses end-of-turn tokens, so that the answer has exactly `max_tokens` tokens.
    pub ignore_end: bool,
    /// If set, an [`AnswerEvent::Tokens`] precedes each text and reports this many of the likeliest
    /// tokens for each token.
    pub report: Option<u32>,
    /// Whether keys and values of earlier requests may be reused.
    pub cache: bool,
    /// Whether to draft tokens by looking up the last ones in the prompt and the answer. Affects
    /// speed only.
    pub draft: bool,
    /// Whether to send an [`AnswerEvent::Read`] after each part of the prompt is decoded.
    pub progress: bool,
    /// Whether reported likelihoods are those that the sampler draws from, after bias, mask,
    /// penalties, temperature and filters. Otherwise they are the model's own.
    pub sampled: bool,
    /// How a JSON answer is kept from repeating itself.
    pub guard: Option<Guard>,
}

impl Generate {
    /// A greedy request with default settings.
    pub fn new(id: impl Into<String>, prompt: Prompt) -> Self {
        Self {
            id: id.into(),
            prompt,
            spokes: SpokeSet::new(),
            max_tokens: None,
            sampling: Sampling::GREEDY,
            logit_bias: Vec::new(),
            stop: Vec::new(),
            constraint: None,
            ignore_end: false,
            report: None,
            cache: true,
            draft: true,
            progress: false,
            sampled: false,
            guard: None,
        }
    }
}

/// How tokens are chosen. Temperature 0 is greedy and needs no seed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Sampling temperature. 0 is greedy.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probabilities reach this sum. 1 keeps all.
    pub top_p: f32,
    /// Keeps this many tokens. 0 keeps all.
    pub top_k: u32,
    /// Drops tokens below this fraction of the best token's probability. 0 keeps all.
    pub min_p: f32,
    /// Equal seeds and prompts give equal answers. `None` draws a random seed.
    pub seed: Option<u64>,
    /// Penalties for tokens that were used.
    pub penalties: Penalties,
}

/// Penalties that are applied to the logits of used tokens before any filter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Positive logits are divided by this, negative ones multiplied by it. 1 has no effect
    /// (llama.cpp's `repeat_penalty`).
    pub repeat: f32,
    /// Subtracted once from the logit of each used token (OpenAI's `presence_penalty`).
    pub presence: f32,
    /// Subtracted for each use of a token (OpenAI's `frequency_penalty`).
    pub frequency: f32,
    /// Number of last tokens that count as used, prompt included. `None` counts all tokens of the
    /// answer and none of the prompt.
    pub last: Option<u32>,
}

impl Penalties {
    /// Has no effect.
    pub const NONE: Self = Self { repeat: 1.0, presence: 0.0, frequency: 0.0, last: None };
}

impl Sampling {
    /// Always chooses the likeliest token.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: None, penalties: Penalties::NONE };
}

/// The shape that an answer must have.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// A JSON value that validates against this schema, without optional whitespace.
    JsonSchema(serde_json::Value),
    /// Any JSON object.
    JsonObject,
    /// Text that matches this regular expression (Rust's syntax) as a whole. The text is not
    /// completed when tokens run out.
    Regex(String),
    /// Text of this grammar in llama.cpp's GBNF, with start rule `root`. The text is not completed
    /// when tokens run out.
    Gbnf(String),
    /// Text of this grammar in llguidance's dialect of Lark, with start rule `start`. The text is
    /// not completed when tokens run out.
    Lark(String),
}

/// An event of a running generation. `Started` comes first, then any number of `Text` events
/// (interleaved with `Read` and `Tokens` if requested, and `Closed` before the end), then either
/// `Finished` or `Failed`. Text is final: text that may still be taken back is not sent.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerEvent {
    /// The prompt is accepted: it has passed every check that can refuse it.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Prompt tokens that were taken from the KV cache.
        cached_tokens: u32,
    },
    /// Number of prompt tokens that are decoded, cached ones included. Sent if the request asked
    /// for progress.
    Read(u32),
    /// Reports on the tokens of the next text. Sent if the request asked for a report.
    Tokens(Vec<TokenReport>),
    /// More text, always whole UTF-8 characters.
    Text(String),
    /// The answer was kept from repeating itself here.
    Closed(Closed),
    /// The answer is complete.
    Finished {
        /// Why the answer ended.
        reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// The answer ended with an error.
    Failed(EngineError),
}

/// A token of an answer and its likelihood.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenReport {
    /// The token.
    pub token: TokenLikelihood,
    /// Whether the constraint allowed no other token. Its probability is then reported as 1.
    pub forced: bool,
    /// The likeliest tokens at this position, best first, as many as the request asked for.
    pub top: Vec<TokenLikelihood>,
}

/// A token and the natural logarithm of its probability by the model's own softmax (temperature 1,
/// no mask), or by the sampler's distribution if the request asks for that ([`Generate::sampled`]).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLikelihood {
    /// Token id.
    pub id: u32,
    /// Bytes of its text, possibly part of a character. For a control token, its name.
    pub bytes: Vec<u8>,
    /// Log probability, at most 0.
    pub logprob: f32,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-turn token, a stop text, or a complete constrained answer.
    Stop,
    /// `max_tokens` or the context was exhausted. A constrained JSON answer was completed validly
    /// all the same.
    Length,
}

/// What a generation cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Prompt tokens that were taken from the KV cache.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Tokens of the answer that the constraint dictated and that were not sampled.
    pub forced_tokens: u32,
    /// Tokens that were drafted (guessed and decoded together with certain ones).
    pub drafted_tokens: u32,
    /// Drafted tokens that were accepted.
    pub accepted_tokens: u32,
    /// Milliseconds from the start of the prompt until its last token was decoded.
    pub prompt_ms: f64,
    /// Milliseconds from then to the last token of the answer.
    pub predicted_ms: f64,
    /// Milliseconds in the queue before the prompt was started.
    pub queued_ms: f64,
    /// Index of the request's stop text that ended the answer, from 0.
    pub stopped_by: Option<u32>,
}

/// Embeddings and what they cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// One unit vector of shape `[n_embd]` per input.
    pub vectors: Vec<Vec<f32>>,
    /// Number of tokens read.
    pub prompt_tokens: u32,
}

/// Health of an engine. A new value is published at least every second while the thread is alive.
#[derive(Debug, Clone)]
pub struct Health {
    /// What the engine is doing.
    pub state: EngineState,
    /// Incremented with each heartbeat.
    pub beat: u64,
    /// Number of requests running in lanes.
    pub running: u32,
    /// Number of requests waiting for a lane.
    pub waiting: u32,
    /// Counters since the start.
    pub totals: Totals,
}

/// Counters since the start, and the state of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// Threads that compute now. Fewer than configured while other programs need the processors.
    pub threads: u32,
    /// Calls of `llama_decode`.
    pub decodes: u64,
    /// Number of lanes that took part, summed over these calls.
    pub busy_lanes: u64,
    /// Prompt tokens decoded.
    pub prompt_tokens: u64,
    /// Seconds in calls that decoded prompt tokens, alone or together with other tokens.
    pub prompt_seconds: f64,
    /// Prompt tokens that were taken from the KV cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub predicted_tokens: u64,
    /// Seconds in calls that decoded no prompt token.
    pub predicted_seconds: f64,
    /// Tokens of answers that a constraint dictated.
    pub forced_tokens: u64,
    /// Tokens drafted.
    pub drafted_tokens: u64,
    /// Drafted tokens that were accepted.
    pub accepted_tokens: u64,
    /// Drafts that were decoded.
    pub drafts: u64,
    /// Tokens of the longest request so far, prompt and answer together.
    pub most_tokens: u64,
    /// KV cache cells in use, counted once for each sequence that holds them.
    pub cache_used: u64,
    /// Total number of KV cache cells.
    pub cache_size: u64,
    /// Bytes of a cell.
    pub place_bytes: u64,
    /// Sequences whose keys and values were dropped to make room for others.
    pub cache_evictions: u64,
}

/// What an engine is doing.
#[derive(Debug, Clone)]
pub enum EngineState {
    /// Weights are being loaded; requests wait.
    Loading,
    /// Requests are being answered.
    Ready(Arc<ModelInfo>),
    /// The engine has failed for this reason and will answer no more requests.
    Failed(String),
    /// Stopped on request.
    Stopped,
}

/// Facts about the loaded model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// `general.name`, or the file's stem.
    pub name: String,
    /// Architecture, as llama.cpp names it.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// File size in bytes.
    pub bytes: u64,
    /// Width of the hidden state and of an embedding.
    pub n_embd: u32,
    /// Maximum tokens per request, prompt and answer together.
    pub n_ctx: u32,
    /// Context length that the model was trained for.
    pub n_ctx_train: u32,
    /// Number of vocabulary entries.
    pub n_vocab: u32,
    /// The model's own chat template (Jinja), if it has one.
    pub chat_template: Option<String>,
    /// Text of the beginning-of-sequence token, or empty.
    pub bos_token: String,
    /// Text of the end-of-sequence token, or empty.
    pub eos_token: String,
    /// The kernels that compute the model.
    pub computing: ComputingReport,
    /// Ids of all tokens that end an answer.
    pub end_tokens: Vec<u32>,
}
