//! What goes into an engine and what comes out: plain serialisable data, so that the engine can live in another process.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::computing::ComputingReport;
use super::guard::{Closed, Guard};
use super::spoke::{LoadedSpoke, SpokeChange, SpokeSet};
pub use crate::text::{Prompt, Segment};

use crate::adapter::Generation;

/// An engine: owns a model and answers requests for it. Cheap to share; every method returns at once.
pub trait Engine: Send + Sync + 'static {
    /// Queues a generation. Dropping the receiver cancels it: generation stops before its next token.
    /// What can be judged without the model (queue full, engine stopped) fails here; the rest arrives as [`Event::Failed`].
    fn generate(&self, request: Generate) -> Result<mpsc::UnboundedReceiver<AnswerEvent>, EngineError>;

    /// Queues mean-pooled, L2-normalised embeddings, one per input, each `[n_embd]`.
    fn embed(
        &self,
        inputs: Vec<Prompt>,
    ) -> Result<oneshot::Receiver<Result<Embeddings, EngineError>>, EngineError>;

    /// Asks something small: token ids of a text, texts of token ids, what the lanes do.
    fn query(&self, query: Query) -> Result<oneshot::Receiver<Result<Reply, EngineError>>, EngineError>;

    /// Loads a spoke or frees one, between two batches. A request that names a generation which isn't loaded when its turn
    /// comes fails with [`EngineError::SpokeNotLoaded`].
    fn spoke(
        &self,
        change: SpokeChange,
    ) -> Result<oneshot::Receiver<Result<LoadedSpoke, EngineError>>, EngineError> {
        let _ = change;
        Err(EngineError::SpokesUnsupported)
    }

    /// State and heartbeat of the engine's own thread.
    fn health(&self) -> watch::Receiver<Health>;

    /// Finishes running requests for at most `drain`, fails the rest, and ends the thread.
    fn stop(&self, drain: Duration);
}

/// Bytes of a token, as a cautious guess.
const BYTES_PER_TOKEN: u64 = 3;

/// Tokens that a prompt probably has: counting them is the engine's work, and this is asked before any work.
pub fn likely_tokens(prompt: &Prompt) -> u64 {
    prompt.iter().map(|segment| segment.text.len() as u64 / BYTES_PER_TOKEN + segment.ids.len() as u64).sum()
}

/// Tokens that prompt and answer will use together, at most as many as the context holds.
pub fn likely_use(prompt: &Prompt, max_tokens: Option<u32>, context: u32) -> u64 {
    let answer = max_tokens.unwrap_or(context);
    likely_tokens(prompt).saturating_add(answer.into()).min(context.into())
}

/// A small question to the engine's thread; answered between two batches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// Ids of a text: with `whole`, exactly as [`Engine::generate`] would see it (a beginning-of-sequence token is added
    /// where the model wants one, and an empty prompt is an error); else just the ids of the text.
    Tokenize {
        /// The text.
        prompt: Prompt,
        /// Whether it is a whole prompt.
        whole: bool,
    },
    /// Ids of each of these texts, as with `whole: false`.
    TokenizeAll(Vec<Prompt>),
    /// The bytes of each of these tokens, control tokens by their names.
    Pieces(Vec<u32>),
    /// What each lane does.
    Lanes,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What a lane does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LaneState {
    /// Its number, from 0.
    pub lane: u32,
    /// Id of the request that it answers.
    pub request: Option<String>,
    /// Number of that request: later ones have larger ones.
    #[serde(default)]
    pub task: u64,
    /// Tokens of that request's prompt.
    pub prompt_tokens: u32,
    /// Tokens of its answer so far.
    pub completion_tokens: u32,
    /// Tokens of that prompt that a cache had.
    pub cached_tokens: u32,
}

/// A request for text.
#[allow(clippy::struct_excessive_bools, reason = "switches that have nothing to do with each other")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// For logs and traces.
    pub id: String,
    /// What the model reads.
    pub prompt: Prompt,
    /// What it runs with beside the post.
    #[serde(default)]
    pub spokes: SpokeSet,
    /// Tokens to produce at most; `None` fills what the context has left.
    pub max_tokens: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Added to the logits of these tokens before anything else; -100 and less bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// What shape the answer must have.
    pub constraint: Option<Constraint>,
    /// End-of-turn tokens are not chosen: the answer has `max_tokens` tokens.
    pub ignore_end: bool,
    /// With a number, an [`Event::Tokens`] precedes each text, with this many of the likeliest tokens for each.
    pub report: Option<u32>,
    /// Whether keys and values of earlier requests may be used.
    pub cache: bool,
    /// Whether tokens are drafted by looking the last ones up in the prompt and the answer; changes speed only.
    pub draft: bool,
    /// Whether an [`Event::Read`] follows each part of the prompt that is read.
    #[serde(default)]
    pub progress: bool,
    /// Whether reported likelihoods are those that the sampler draws from, after bias, shape,
    /// penalties, temperature and filters; else they are the model's own.
    #[serde(default)]
    pub sampled: bool,
    /// How an answer in JSON is kept from repeating itself.
    #[serde(default)]
    pub guard: Option<Guard>,
}

impl Generate {
    /// A greedy request with nothing special about it.
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
    /// What is taken from the logits of tokens that were used.
    pub penalties: Penalties,
}

/// What is taken from the logits of tokens that were used, before anything else looks at them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Penalties {
    /// Positive logits are divided by it, negative ones multiplied; 1 changes nothing (llama.cpp's `repeat_penalty`).
    pub repeat: f32,
    /// Subtracted once from each token that was used (OpenAI's `presence_penalty`).
    pub presence: f32,
    /// Subtracted for each time that a token was used (OpenAI's `frequency_penalty`).
    pub frequency: f32,
    /// How many of the last tokens count as used, prompt included; `None`: all tokens of the answer, none of the prompt.
    pub last: Option<u32>,
}

impl Penalties {
    /// Changes nothing.
    pub const NONE: Self = Self { repeat: 1.0, presence: 0.0, frequency: 0.0, last: None };
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: None, penalties: Penalties::NONE };
}

/// What shape an answer must have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// A JSON value that validates against this schema, without free whitespace.
    JsonSchema(serde_json::Value),
    /// Any JSON object.
    JsonObject,
    /// Text that matches this regular expression (Rust's syntax) as a whole. Not closed when tokens run out.
    Regex(String),
    /// Text of this grammar in llama.cpp's GBNF, rule `root`. Not closed when tokens run out.
    Gbnf(String),
    /// Text of this grammar in llguidance's dialect of Lark, rule `start`. Not closed when tokens run out.
    Lark(String),
}

/// What an engine says about a running generation. `Started`, then `Text` any number of times (with
/// `Read` and `Tokens` among them where they are asked for, and `Closed` before the end), then one
/// of the last two. Text is certain: what may still be taken back is not told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AnswerEvent {
    /// The prompt is accepted: every check that can refuse it has passed.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Of these, taken from a cache.
        cached_tokens: u32,
    },
    /// So many tokens of the prompt are read, those from a cache included, if the request asked for
    /// its progress.
    Read(u32),
    /// The tokens of the next text, if the request asked for a report.
    Tokens(Vec<TokenReport>),
    /// More text, always whole UTF-8 characters.
    Text(String),
    /// The answer was kept from repeating itself here.
    Closed(Closed),
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

/// A token of an answer and how likely it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenReport {
    /// The token.
    pub token: TokenLikelihood,
    /// Whether the constraint left no choice; its likelihood is 1 then.
    pub forced: bool,
    /// The likeliest tokens at its place, best first, as many as the request wants.
    pub top: Vec<TokenLikelihood>,
}

/// A token and the natural logarithm of its probability by the model's own softmax (temperature 1, nothing masked),
/// unless the request wants what the sampler makes of it ([`Generate::sampled`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLikelihood {
    /// Its id.
    pub id: u32,
    /// Its text, which may be part of a character; of a control token, its name.
    pub bytes: Vec<u8>,
    /// At most 0.
    pub logprob: f32,
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
    /// Tokens that were drafted (guessed and decoded together).
    pub drafted_tokens: u32,
    /// Of these, the ones that were right.
    pub accepted_tokens: u32,
    /// Milliseconds from the first prompt token decoded to the last.
    pub prompt_ms: f64,
    /// Milliseconds from then to the last token of the answer.
    pub predicted_ms: f64,
    /// Milliseconds in the queue before that.
    pub queued_ms: f64,
    /// Which of the request's stop texts ended the answer, from 0.
    #[serde(default)]
    pub stopped_by: Option<u32>,
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
    /// What has been done so far.
    pub totals: Totals,
}

/// Counters since the start, and what the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Threads that compute now; fewer than configured while other programs need the processors.
    pub threads: u32,
    /// Calls of `llama_decode`.
    pub decodes: u64,
    /// Lanes that took part, summed over these calls.
    pub busy_lanes: u64,
    /// Prompt tokens decoded.
    pub prompt_tokens: u64,
    /// Seconds in calls that decoded prompt tokens only or beside others.
    pub prompt_seconds: f64,
    /// Prompt tokens that a cache had.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub predicted_tokens: u64,
    /// Seconds in calls that decoded no prompt token.
    pub predicted_seconds: f64,
    /// Tokens of answers that a constraint dictated.
    pub forced_tokens: u64,
    /// Tokens drafted.
    pub drafted_tokens: u64,
    /// Of these, the ones that were right.
    pub accepted_tokens: u64,
    /// Drafts that were decoded.
    #[serde(default)]
    pub drafts: u64,
    /// Tokens of the request that had most, prompt and answer.
    #[serde(default)]
    pub most_tokens: u64,
    /// Places for keys and values that hold something (counted for each sequence that holds it).
    pub cache_used: u64,
    /// All places for keys and values.
    pub cache_size: u64,
    /// Bytes of a place.
    pub place_bytes: u64,
    /// Sequences whose keys and values were dropped to make room for others.
    pub cache_evictions: u64,
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
    /// With which kernels it is computed.
    #[serde(default)]
    pub computing: ComputingReport,
    /// All tokens that end an answer.
    #[serde(default)]
    pub end_tokens: Vec<u32>,
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
    /// The texts of the waiting requests are at their limit.
    #[error("the queue is full: the requests that wait have about {tokens} tokens; at most {limit} may wait")]
    QueueTokens {
        /// Tokens that would wait, estimated.
        tokens: u64,
        /// The limit.
        limit: u64,
    },
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens; the context holds {context}, answer included")]
    PromptTooLong {
        /// Of the prompt.
        tokens: u32,
        /// The limit.
        context: u32,
    },
    /// The prompt is so long that it is not even tokenised: no token stands for as many bytes as these would have to.
    #[error(
        "the prompt has {bytes} bytes, which are {least} tokens at least; the context holds {context}, answer included"
    )]
    PromptTooLarge {
        /// Of its texts.
        bytes: u64,
        /// Tokens that it has at least.
        least: u64,
        /// The limit.
        context: u32,
    },
    /// Texts to embed are more than one request may bring.
    #[error("the texts have more than {limit} tokens together: send them in several requests")]
    TooMuchInput {
        /// The limit.
        limit: u64,
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
    /// A token id outside the vocabulary.
    #[error("{id} is no token id: the vocabulary has {vocabulary} entries")]
    NoSuchToken {
        /// The id.
        id: u32,
        /// Entries of the vocabulary.
        vocabulary: u32,
    },
    /// The schema can't be held to, for this reason at this place.
    #[error("the schema can't be compiled: {0}")]
    Schema(String),
    /// llguidance does not take the grammar or the regular expression.
    #[error("it can't be compiled: {0}")]
    Grammar(String),
    /// The request runs with a spoke that isn't loaded.
    #[error("the spoke {} is not loaded", generation.short())]
    SpokeNotLoaded {
        /// Which content.
        generation: Generation,
    },
    /// A spoke can't be loaded, for this reason.
    #[error("the spoke can't be loaded: {0}")]
    Spoke(String),
    /// This engine has no spokes.
    #[error("spokes are not supported by this engine")]
    SpokesUnsupported,
    /// The model file can't be served.
    #[error("{0}")]
    Model(String),
    /// The engine was stopped or its thread is gone.
    #[error("the engine is stopping")]
    Stopped,
    /// No token can be chosen by what the model computes.
    #[error("the model computes no numbers: none of its logits is finite")]
    NotFinite,
    /// llama.cpp reported a failure that no request is to blame for.
    #[error("the engine failed: {0}")]
    Internal(String),
}
