//! Text to token ids and back: a Hugging Face `tokenizer.json` with the chat markers of a post.

use std::path::Path;

/// Tokens that mark the turns of a conversation; ids 0..=6, in this order.
pub const MARKERS: [&str; 7] =
    ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"];
/// Padding.
pub const PAD: u32 = 0;
/// Beginning of sequence (declared for tools that want one; no prompt starts with it).
pub const BOS: u32 = 1;
/// End of a turn, and of generation.
pub const END: u32 = 2;

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A tokenizer with its chat markers.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

/// Why a tokenizer can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file can't be read as a tokenizer.
    #[error("{path}: not a tokenizer.json: {message}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What the parser says.
        message: String,
    },
    /// A text can't be encoded or ids can't be decoded.
    #[error("tokenizer: {0}")]
    Text(String),
    /// A role without a marker.
    #[error("role {0:?} has no marker: expected system, user, assistant or tool")]
    Role(String),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let wrong = |message: String| TokenizerError::File { path: path.to_owned(), message };
        let bytes = fs_err::read(path).map_err(|e| wrong(e.to_string()))?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| wrong(e.to_string()))?;
        Ok(Self::new(inner))
    }

    /// Wraps a tokenizer made in memory.
    pub fn new(inner: tokenizers::Tokenizer) -> Self {
        Self { inner }
    }

    /// The tokenizer as `tokenizer.json` text.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.inner.to_string(true).map_err(|e| TokenizerError::Text(e.to_string()))
    }

    /// The wrapped tokenizer.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// Ids of a text in which markers are only text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        // Special tokens are looked for in the text unless this is set; a person's text must never become a marker.
        let mut inner = self.inner.clone();
        inner.set_encode_special_tokens(true);
        let encoding = inner.encode_fast(text, false).map_err(|e| TokenizerError::Text(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids, markers included.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, false).map_err(|e| TokenizerError::Text(e.to_string()))
    }

    /// Ids of a conversation up to and including the marker that opens the assistant's turn.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        for message in messages {
            ids.push(self.marker(&message.role)?);
            ids.extend(self.encode(&message.content)?);
            ids.push(END);
        }
        ids.push(self.marker("assistant")?);
        Ok(ids)
    }

    /// Id of a role's marker.
    fn marker(&self, role: &str) -> Result<u32, TokenizerError> {
        match role {
            "system" | "user" | "assistant" | "tool" => {
                self.inner.token_to_id(&format!("<|{role}|>")).ok_or_else(|| TokenizerError::Role(role.to_owned()))
            }
            _ => Err(TokenizerError::Role(role.to_owned())),
        }
    }

    /// Entries, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}
