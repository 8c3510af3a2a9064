//! A prompt in pieces, as a template renders it and the engine tokenises it.

/// A prompt as pieces. In a `markup` piece the text of a control token (`<|user|>`) becomes that
/// token; elsewhere it is plain text. So the content of a message can't forge the conversation
/// around it.
pub type Prompt = Vec<Segment>;

/// One piece of a [`Prompt`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether the text of a control token means that token.
    pub markup: bool,
    /// Tokens after the text, for callers that tokenise themselves.
    pub ids: Vec<u32>,
}

impl Segment {
    /// Text of the template.
    pub fn markup(text: impl Into<String>) -> Self {
        Self { text: text.into(), markup: true, ids: Vec::new() }
    }
    /// Text of a person.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), markup: false, ids: Vec::new() }
    }
    /// Tokens, taken as they are.
    pub fn ids(ids: Vec<u32>) -> Self {
        Self { text: String::new(), markup: false, ids }
    }
}
