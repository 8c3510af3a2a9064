//! Why an engine doesn't do what it was asked.

use crate::adapter::Generation;

/// Why a request can't be answered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The number of waiting requests is at its limit.
    #[error("the queue is full: {waiting} requests are waiting")]
    Overloaded {
        /// Number of waiting requests.
        waiting: u32,
    },
    /// The tokens of the waiting requests are at their limit.
    #[error("the queue is full: waiting requests would have about {tokens} tokens; the limit is {limit}")]
    QueueTokens {
        /// Estimated tokens of the waiting requests, this one included.
        tokens: u64,
        /// The limit.
        limit: u64,
    },
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens; the context holds {context}, answer included")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: u32,
        /// Context size.
        context: u32,
    },
    /// The prompt is so long that it is not tokenised: even if every token were the longest of the
    /// vocabulary, it would not fit.
    #[error(
        "the prompt has {bytes} bytes, which is at least {least} tokens; the context holds {context}, answer included"
    )]
    PromptTooLarge {
        /// Bytes of the prompt's texts.
        bytes: u64,
        /// Lower bound on its tokens.
        least: u64,
        /// Context size.
        context: u32,
    },
    /// The texts to embed exceed the limit of one request.
    #[error("the texts have more than {limit} tokens together: send them in several requests")]
    TooMuchInput {
        /// Maximum tokens.
        limit: u64,
    },
    /// A text to embed does not fit into the context.
    #[error("text {index} has {tokens} tokens; the context holds {context}")]
    InputTooLong {
        /// Index of the text, from 0.
        index: u32,
        /// Tokens of the text.
        tokens: u32,
        /// Context size.
        context: u32,
    },
    /// Even the shortest valid answer exceeds the token limit.
    #[error(
        "max_tokens is {given}; the shortest answer that validates against the schema needs {needed} tokens"
    )]
    BudgetTooSmall {
        /// Tokens of the shortest valid answer.
        needed: u32,
        /// Tokens available.
        given: u32,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id is outside the vocabulary.
    #[error("{id} is not a token id: the vocabulary has {vocabulary} entries")]
    NoSuchToken {
        /// The id.
        id: u32,
        /// Entries of the vocabulary.
        vocabulary: u32,
    },
    /// The schema can't be enforced. The text names the place and the reason.
    #[error("the schema can't be compiled: {0}")]
    Schema(String),
    /// llguidance rejects the grammar or the regular expression.
    #[error("the grammar can't be compiled: {0}")]
    Grammar(String),
    /// The request names a spoke that isn't loaded.
    #[error("the spoke {} is not loaded", generation.short())]
    SpokeNotLoaded {
        /// Generation of the spoke.
        generation: Generation,
    },
    /// A spoke can't be loaded, for this reason.
    #[error("the spoke can't be loaded: {0}")]
    Spoke(String),
    /// This engine does not support spokes.
    #[error("spokes are not supported by this engine")]
    SpokesUnsupported,
    /// The model file can't be served.
    #[error("{0}")]
    Model(String),
    /// The engine was stopped or its thread has ended.
    #[error("the engine is stopping")]
    Stopped,
    /// No token can be chosen: none of the logits is finite.
    #[error("the model's logits are not finite")]
    NotFinite,
    /// llama.cpp reported a failure that no request has caused.
    #[error("the engine failed: {0}")]
    Internal(String),
}
