//! Shared code of the APIs that are translated into chat: validates, answers and counts a body as
//! chat does, and translates field names in errors back to the names that the client knows.

use serde_json::{Map, Value};

use super::app::{App, Deadline};
use super::error::ApiError;
use super::openai::chat::{ChatRequest, Started};
use crate::config::SamplingDefaults;
use crate::text::Turn;
use crate::text::conversation::Conversation;
use crate::text::fields::{kind, short};

/// One of these APIs.
pub(super) struct Dialect {
    /// Its name for an answer, with the article.
    pub(super) answer: &'static str,
    /// The field that holds the prompt.
    pub(super) prompt: &'static str,
    /// The field that chat calls `response_format`.
    pub(super) format: &'static str,
    /// Further fields of chat, and their names in this API. A name also covers the fields inside
    /// it.
    pub(super) renamed: &'static [(&'static str, &'static str)],
    /// Parts of the path of a tool's field, with their replacements.
    pub(super) tool: &'static [(&'static str, &'static str)],
}

impl Dialect {
    /// Reads a body, whose messages and fields are translated.
    pub(super) fn read(
        &self,
        turns: Vec<Turn>,
        fields: Map<String, Value>,
        defaults: &SamplingDefaults,
    ) -> Result<ChatRequest, ApiError> {
        let request = ChatRequest::read(fields, defaults, |fields| Conversation::of(turns, fields));
        let mut request = request.map_err(|error| self.translate(error))?;
        let ChatRequest { options, .. } = &mut request;
        if options.n > 1 {
            let message = format!("found {}, expected 1: {} is one answer", options.n, self.answer);
            return Err(ApiError::field("n", message));
        }
        if options.constraint_field == "response_format" {
            options.constraint_field = self.format;
        }
        Ok(request)
    }

    /// Starts to answer, under an id with this prefix.
    pub(super) async fn start(
        &self,
        request: ChatRequest,
        app: &App,
        deadline: Deadline,
        id: (&str, &'static str),
    ) -> Result<Started, ApiError> {
        request.start(app, deadline, id, self.prompt).await.map_err(|error| self.translate(error))
    }

    /// Number of tokens in the prompt.
    pub(super) async fn count(
        &self,
        request: &ChatRequest,
        app: &App,
        deadline: Deadline,
    ) -> Result<usize, ApiError> {
        request.count(app, deadline, self.prompt).await.map_err(|error| self.translate(error))
    }

    fn translate(&self, error: ApiError) -> ApiError {
        match error {
            ApiError::Field { field, message } => ApiError::Field { field: self.name(&field), message },
            other => other,
        }
    }

    /// The client's name for a field of chat.
    pub(super) fn name(&self, field: &str) -> String {
        let inside = |theirs: &str| {
            field.strip_prefix(theirs).filter(|rest| rest.is_empty() || rest.starts_with(['[', '.']))
        };
        // In this API the items don't correspond to messages, so the index would be wrong.
        if self.prompt != "messages" && inside("messages").is_some() {
            return self.prompt.to_owned();
        }
        for (theirs, ours) in self.renamed {
            if let Some(rest) = inside(theirs) {
                return format!("{ours}{rest}");
            }
        }
        match inside("response_format") {
            Some(rest) => format!("{}{rest}", self.format),
            None if field.starts_with("tools[") => {
                self.tool.iter().fold(field.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours))
            }
            None => field.to_owned(),
        }
    }
}

/// The texts of a `content`: of a string, or of parts that `text` reads. `parts` is the API's name
/// for them.
pub(super) fn texts(
    path: &str,
    content: &Value,
    parts: &str,
    text: impl Fn(&str, &Value) -> Result<String, ApiError>,
) -> Result<Vec<String>, ApiError> {
    match content {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(all) => {
            all.iter().enumerate().map(|(index, part)| text(&format!("{path}[{index}]"), part)).collect()
        }
        other => {
            let message = format!("found {}, expected a string or an array of {parts}", kind(other));
            Err(ApiError::field(path, message))
        }
    }
}

/// The error for a part that can't be read. `read` names those that can.
pub(super) fn unread(path: &str, part: &Value, read: &str) -> ApiError {
    match part.get("type") {
        Some(Value::String(image)) if matches!(&**image, "image" | "input_image") => {
            ApiError::field(path, "image input is not supported: only text is read")
        }
        found => {
            let found = found.map_or_else(|| "nothing".to_owned(), short);
            let message = format!("found {found}, which is not supported here: only {read}");
            ApiError::field(format!("{path}.type"), message)
        }
    }
}

/// A required string.
pub(super) fn string<'a>(path: &str, value: Option<&'a Value>) -> Result<&'a str, ApiError> {
    let found = value.map_or("nothing", kind);
    value
        .and_then(Value::as_str)
        .ok_or_else(|| ApiError::field(path, format!("found {found}, expected a string")))
}
