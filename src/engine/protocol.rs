//! What goes into an engine and what comes out: plain serialisable data, so that the engine can live in another process.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

/// An engine: owns a model and answers requests for it. Cheap to share; every method returns at once.
pub trait Engine: Send + Sync + 'static {
    /// Queues a generation. Dropping the receiver cancels it: generation stops before its next token.
    /// What can be judged without the model (queue full, engine stopped) fails here; the rest arrives as [`Event::Failed`].
    fn generate(&self, request: Generate) -> Result<mpsc::UnboundedReceiver<Event>, EngineError>;

    /// Queues mean-pooled, L2-normalised embeddings, one per input, each `[n_embd]`.
    fn embed(
        &self,
        inputs: Vec<Prompt>,
    ) -> Result<oneshot::Receiver<Result<Embeddings, EngineError>>, EngineError>;

    /// Token ids of a prompt, exactly as [`Engine::generate`] would see them.
    fn tokenize(
        &self,
        prompt: Prompt,
    ) -> Result<oneshot::Receiver<Result<Vec<u32>, EngineError>>, EngineError>;

    /// State and heartbeat of the engine's own thread.
    fn health(&self) -> watch::Receiver<Health>;

    /// Finishes running requests for at most `drain`, fails the rest, and ends the thread.
    fn stop(&self, drain: Duration);
}

/// A prompt as pieces: in a `markup` piece the text of a control token (`<|user|>`) is that token; elsewhere it is only text.
/// This is what keeps a message's content from forging the conversation around it.
pub type Prompt = Vec<Segment>;

/// One piece of a [`Prompt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether control-token text in it means control tokens.
    pub markup: bool,
}

impl Segment {
    /// Text from the template.
    pub fn markup(text: impl Into<String>) -> Self {
        Self { text: text.into(), markup: true }
    }
    /// Text from a person.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), markup: false }
    }
}

/// A request for text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// For logs and traces.
    pub id: String,
    /// What the model reads.
    pub prompt: Prompt,
    /// Tokens to produce at most; `None` fills what the context has left.
    pub max_tokens: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// What shape the answer must have.
    pub constraint: Option<Constraint>,
}

/// How tokens are chosen. Temperature 0 is greedy and needs no seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens below this share of the best token's probability; 0 keeps all.
    pub min_p: f32,
    /// The same seed and prompt give the same answer; `None` draws one.
    pub seed: Option<u64>,
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: None };
}

/// What shape an answer must have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// A JSON value that validates against this schema, without free whitespace.
    JsonSchema(serde_json::Value),
    /// Any JSON object.
    JsonObject,
}

/// What an engine says about a running generation. `Started`, then `Text` any number of times, then one of the last two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The prompt is accepted: every check that can refuse it has passed.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Of these, taken from a cache.
        cached_tokens: u32,
    },
    /// More text, always whole UTF-8 characters.
    Text(String),
    /// The end, in peace.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// The end, in trouble.
    Failed(EngineError),
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End-of-turn token, stop text, or a complete constrained answer.
    Stop,
    /// `max_tokens` or the context ran out (a constrained answer was closed validly all the same).
    Length,
}

/// What a generation cost.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, taken from a cache.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Of these, dictated by the constraint and not sampled.
    pub forced_tokens: u32,
    /// Milliseconds from the first prompt token decoded to the last.
    pub prompt_ms: f64,
    /// Milliseconds from then to the last token of the answer.
    pub predicted_ms: f64,
    /// Milliseconds in the queue before that.
    pub queued_ms: f64,
}

/// Embeddings and what they cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embeddings {
    /// One `[n_embd]` vector of length 1 per input.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens read.
    pub prompt_tokens: u32,
}

/// State of an engine; a new value at least every second while its thread is alive.
#[derive(Debug, Clone)]
pub struct Health {
    /// What it is doing.
    pub state: EngineState,
    /// Counts up with each turn of the engine's loop.
    pub beat: u64,
    /// Requests running in lanes.
    pub running: u32,
    /// Requests waiting for a lane.
    pub waiting: u32,
}

/// What an engine is doing.
#[derive(Debug, Clone)]
pub enum EngineState {
    /// Weights are being read; requests wait.
    Loading,
    /// Requests are answered.
    Ready(Arc<ModelInfo>),
    /// No request will ever be answered, for this reason.
    Failed(String),
    /// Ended as asked.
    Stopped,
}

/// Facts of the loaded model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `general.name`, or the file's stem.
    pub name: String,
    /// llama.cpp architecture.
    pub architecture: String,
    /// Parameters.
    pub parameters: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Width of the hidden state, and of an embedding.
    pub n_embd: u32,
    /// Tokens that one request may use, prompt and answer together.
    pub n_ctx: u32,
    /// Context length that the model was trained for.
    pub n_ctx_train: u32,
    /// Vocabulary entries.
    pub n_vocab: u32,
    /// The model's own chat template (Jinja), if it has one.
    pub chat_template: Option<String>,
    /// Text of the beginning-of-sequence token, or empty.
    pub bos_token: String,
    /// Text of the end-of-sequence token, or empty.
    pub eos_token: String,
}

/// Why a request can't be answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum EngineError {
    /// Waiting requests are at their limit.
    #[error("the queue is full: {waiting} requests are waiting")]
    Overloaded {
        /// How many.
        waiting: u32,
    },
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens; the context holds {context}, answer included")]
    PromptTooLong {
        /// Of the prompt.
        tokens: u32,
        /// The limit.
        context: u32,
    },
    /// A text to embed does not fit the context.
    #[error("text {index} has {tokens} tokens; the context holds {context}")]
    InputTooLong {
        /// Which of the texts, from 0.
        index: u32,
        /// Its length.
        tokens: u32,
        /// The limit.
        context: u32,
    },
    /// Not even the shortest valid answer fits.
    #[error(
        "max_tokens is {given}; the shortest answer that validates against the schema needs {needed} tokens"
    )]
    BudgetTooSmall {
        /// Tokens of the shortest valid answer.
        needed: u32,
        /// Tokens there are.
        given: u32,
    },
    /// The prompt has no token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// llguidance does not take the schema.
    #[error("the schema can't be compiled: {0}")]
    Schema(String),
    /// The model file can't be served.
    #[error("{0}")]
    Model(String),
    /// The engine was stopped or its thread is gone.
    #[error("the engine is stopping")]
    Stopped,
    /// llama.cpp reported a failure that no request is to blame for.
    #[error("the engine failed: {0}")]
    Internal(String),
}
