//! Converts text to token ids and back: a Hugging Face `tokenizer.json` with the chat markers of a
//! post.

use std::path::Path;

use tokenizers::{AddedToken, ModelWrapper};

use super::control_texts;

/// Tokens that mark the turns of a conversation; ids 0..=6, in this order.
pub const MARKERS: [&str; 7] =
    ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"];
/// Padding.
pub const PAD: u32 = 0;
/// Beginning of sequence (declared for tools that need one; no prompt starts with it).
pub const BOS: u32 = 1;
/// End of a turn, and of generation.
pub const END: u32 = 2;

/// The conversation as the model reads it. Markers adjoin the text, and no token spans both.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

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
    /// A post needs a tokenizer with the markers, and this one lacks them.
    #[error(
        "{path}: token {id} is {}, expected {marker:?}: a model that is trained from scratch reads conversations by a post's markers; \
         leave data.tokenizer out, or start from a [base] that has this tokenizer",
        .found.as_deref().unwrap_or("none")
    )]
    NoPost {
        /// The file.
        path: std::path::PathBuf,
        /// A marker's id.
        id: u32,
        /// The token that has it.
        found: Option<String>,
        /// The marker.
        marker: &'static str,
    },
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

    /// The first marker of a post that doesn't have its id, with that id.
    pub fn foreign_marker(&self) -> Option<(u32, &'static str)> {
        (0..).zip(MARKERS).find(|(id, marker)| self.inner.token_to_id(marker) != Some(*id))
    }

    /// Checks that a file's tokenizer has the markers of a post.
    ///
    /// # Errors
    /// The first marker that doesn't have its id.
    pub fn check_markers(&self, path: &Path) -> Result<(), TokenizerError> {
        let Some((id, marker)) = self.foreign_marker() else { return Ok(()) };
        let found = self.inner.id_to_token(id);
        Err(TokenizerError::NoPost { path: path.to_owned(), id, found, marker })
    }

    /// Wraps a tokenizer. Settings that its file made for one use are turned off: truncation,
    /// padding, and BPE dropout.
    pub fn new(mut inner: tokenizers::Tokenizer) -> Self {
        inner.with_padding(None);
        // Fails only for a length that doesn't fit, and `None` has no length.
        let _ = inner.with_truncation(None);
        if let ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }
        // Without this, special tokens are recognised in any text; user text must never become a
        // marker.
        inner.set_encode_special_tokens(true);
        // Some files declare the markers of their templates as ordinary tokens; llama.cpp goes by
        // their looks.
        let added = inner.get_added_tokens_decoder();
        let mut markers: Vec<_> = added
            .values()
            .filter(|token| !token.special && looks_special(&token.content))
            .map(|token| AddedToken { special: true, ..token.clone() })
            .collect();
        // Vocabulary entries that are not added tokens.
        let is_added = |text: &str| added.values().any(|token| token.content == text);
        let entries =
            control_texts::all().filter(|text| inner.token_to_id(text).is_some() && !is_added(text));
        markers.extend(entries.map(|text| AddedToken::from(text, true)));
        inner.add_special_tokens(markers).expect("texts that a vocabulary has can be searched for");
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

    /// Ids of a text; markers in it are treated as text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Text(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of a JSON answer, split at the boundaries and escapes of its string values (see
    /// [`answer_pieces`]).
    pub fn encode_answer(&self, json: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        for piece in answer_pieces(json) {
            ids.extend(self.encode(piece)?);
        }
        Ok(ids)
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
            "system" | "user" | "assistant" | "tool" => self
                .inner
                .token_to_id(&format!("<|{role}|>"))
                .ok_or_else(|| TokenizerError::Role(role.to_owned())),
            _ => Err(TokenizerError::Role(role.to_owned())),
        }
    }

    /// Number of entries, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Whether a token looks like a marker although its file doesn't say so (the rules of llama.cpp
/// and its converter).
pub fn looks_special(token: &str) -> bool {
    let between = |open: &str, close: &str| token.starts_with(open) && token.ends_with(close);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
        || control_texts::contains(token)
}

/// Splits compact JSON into pieces that are tokenised separately: what is between string values
/// (keys, brackets and the opening quotation mark), each run of plain text inside a value, each
/// escape sequence, and the closing mark.
///
/// So a value that is copied from an event has the same tokens as in the event, whatever
/// punctuation surrounds it.
pub fn answer_pieces(json: &str) -> Vec<&str> {
    let bytes = json.as_bytes();
    let mut pieces = Vec::new();
    let (mut from, mut at) = (0, 0);
    while at < bytes.len() {
        if bytes[at] != b'"' {
            at += 1;
            continue;
        }
        let end = string_end(bytes, at);
        if bytes.get(end) == Some(&b':') {
            at = end; // a key belongs to the run between values
            continue;
        }
        pieces.push(&json[from..=at]);
        let close = end - usize::from(end > at + 1 && bytes[end - 1] == b'"');
        value_pieces(json, at + 1, close, &mut pieces);
        pieces.push(&json[close..end]);
        from = end;
        at = end;
    }
    pieces.push(&json[from..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// Index after the closing mark of the string literal that opens at `open`, or the end of the
/// text.
fn string_end(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Adds the runs and escapes inside a literal.
fn value_pieces<'a>(json: &'a str, from: usize, to: usize, pieces: &mut Vec<&'a str>) {
    let bytes = json.as_bytes();
    let (mut from, mut at) = (from, from);
    while at < to {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        pieces.push(&json[from..at]);
        let long = if bytes.get(at + 1) == Some(&b'u') { 6 } else { 2 };
        let mut end = (at + long).min(to);
        while !json.is_char_boundary(end) {
            end -= 1;
        }
        pieces.push(&json[at..end]);
        from = end;
        at = end;
    }
    pieces.push(&json[from..to]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_at_values_and_escapes() {
        let json = r#"{"a":"x\n\"y\"","b":["é",""],"n":0.5}"#;
        let pieces = answer_pieces(json);
        assert_eq!(
            pieces,
            [
                r#"{"a":""#,
                "x",
                r"\n",
                r#"\""#,
                "y",
                r#"\""#,
                "\"",
                r#","b":[""#,
                "é",
                "\"",
                r#",""#,
                "\"",
                r#"],"n":0.5}"#
            ]
        );
        assert_eq!(pieces.concat(), json);
    }

    #[test]
    fn broken_json_is_cut_without_loss() {
        for text in ["", "\"", "{\"a", "{\"a\":\"x\\", "\\", "{\"a\":\"\\u12é"] {
            assert_eq!(answer_pieces(text).concat(), text, "{text:?}");
        }
    }
}
