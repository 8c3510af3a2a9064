//! A conversation: messages, the tools that may be called, and how a template makes a prompt of them.

mod message;
mod tools;

use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value};

use self::message::{Message, turns, without_marker};
pub use self::tools::{Choice, Tools, rooted};
use super::fields::{self, FieldError};
use super::template::{ChatTemplate, TemplateError, Turn};
use super::{Prompt, Segment};
use crate::native::local_time;

/// As written.
#[derive(Debug, Deserialize)]
struct ConversationFields {
    messages: Vec<Message>,
    reasoning_effort: Option<Effort>,
    chat_template_kwargs: Option<Map<String, Value>>,
    add_generation_prompt: Option<bool>,
    /// vLLM's word for what an assistant's message at the end means here anyway.
    continue_final_message: Option<bool>,
}

/// How much a model may think before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
}

/// A conversation that has been read, and where its prompt ends.
#[derive(Debug)]
pub struct Conversation {
    turns: Vec<Turn>,
    /// The tools that may be called.
    pub tools: Tools,
    parameters: Map<String, Value>,
    end: End,
}

/// Why a conversation gives no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// A message can't be shown as it has to be.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The template has no prompt for it.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Where a prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Where a new answer begins, or after the assistant's text, if that is the last message.
    Usual,
    /// After the assistant's text: there must be one.
    GoesOn,
    /// Where a new answer begins, whatever the last message is.
    New,
    /// Where the last message ends.
    Closed,
    /// The request wants to go on, and a new answer.
    Both,
}

impl End {
    fn new(opened: Option<bool>, goes_on: Option<bool>) -> Self {
        match (opened, goes_on) {
            (Some(true), Some(true)) => Self::Both,
            (_, Some(true)) => Self::GoesOn,
            (Some(false), _) => Self::Closed,
            (_, Some(false)) => Self::New,
            _ => Self::Usual,
        }
    }
}

impl Conversation {
    /// Judges the part of a body that makes the prompt.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn parse(body: &Value) -> Result<Self, FieldError> {
        let written: ConversationFields = fields::parse(body)?;
        if written.messages.is_empty() {
            return Err(FieldError::new("messages", "is empty, expected at least one message"));
        }
        let mut parameters = Map::new();
        if let Some(effort) = written.reasoning_effort {
            parameters.insert("enable_thinking".to_owned(), (effort != Effort::None).into());
            parameters.insert("reasoning_effort".to_owned(), effort.name().into());
        }
        // What is said to the template itself is the more exact word.
        parameters.extend(written.chat_template_kwargs.unwrap_or_default());
        let end = End::new(written.add_generation_prompt, written.continue_final_message);
        Ok(Self { turns: turns(written.messages), tools: Tools::parse(body)?, parameters, end })
    }

    /// What a request can't say about where its prompt ends.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn check_end(&self) -> Result<(), FieldError> {
        let field = "continue_final_message";
        if self.end == End::Both {
            return Err(FieldError::new(field, "can't be combined with add_generation_prompt: true"));
        }
        let continued = self.continued().is_some();
        if self.end == End::GoesOn && !continued {
            return Err(FieldError::new(field, "the last message is no text of the assistant"));
        }
        let mut texts = self.turns.iter().rev().map(|turn| turn.role == "assistant" && turn.calls.is_empty());
        if continued && texts.nth(1) == Some(true) {
            let field = format!("messages[{}]", self.turns.len() - 1);
            let message =
                "the last message is gone on with, which another message of the assistant can't precede";
            return Err(FieldError::new(field, message));
        }
        Ok(())
    }

    /// Sets whether the model thinks, and the dates that llama-server's templates ask for, if the request says nothing
    /// about them.
    pub fn fill_in(&mut self, thinks: bool) {
        self.parameters.entry("enable_thinking").or_insert(thinks.into());
        for (name, format) in [("date_string", "%d %b %Y"), ("datetime", "%b %d %Y")] {
            if let Some(today) = local_time(format, SystemTime::now()) {
                self.parameters.entry(name).or_insert(today.into());
            }
        }
    }

    /// The prompt, up to where the answer begins: behind what the assistant has said last, if that is the last message.
    ///
    /// # Errors
    /// A message that can't be shown; the template's refusal.
    pub fn prompt(&self, template: &ChatTemplate) -> Result<Prompt, PromptError> {
        Ok(self.go_on(self.rendered(template)?)?)
    }

    /// What the assistant has said last, to be gone on with.
    fn continued(&self) -> Option<&str> {
        if matches!(self.end, End::New | End::Closed) {
            return None;
        }
        let last = self.turns.last().filter(|turn| turn.role == "assistant" && turn.calls.is_empty())?;
        Some(last.content.as_str()).filter(|said| !said.is_empty())
    }

    /// Adds it to the prompt. It is part of an answer: behind opened thinking nobody could tell where that had ended.
    ///
    /// # Errors
    /// The message that can't be continued.
    pub fn go_on(&self, mut prompt: Prompt) -> Result<Prompt, FieldError> {
        let Some(said) = self.continued() else { return Ok(prompt) };
        let last = self.turns.len() - 1;
        if self.turns[last].reasoning.is_some() {
            let message = "an assistant's message at the end is gone on with, which can't be combined with what it thought \
                           before: leave that out, or let the last message be another's";
            return Err(FieldError::new(format!("messages[{last}].reasoning_content"), message));
        }
        if !opens_thinking(&prompt) {
            prompt.push(Segment::plain(said));
            return Ok(prompt);
        }
        let field = format!("messages[{last}]");
        let message = "an assistant's message at the end is gone on with, which can't be combined with thinking: turn that off \
                       with reasoning_effort \"none\", or let the last message be another's";
        Err(FieldError::new(field, message))
    }

    /// The prompt without what the assistant has said last, if that is to be continued.
    ///
    /// # Errors
    /// The template's refusal.
    pub fn rendered(&self, template: &ChatTemplate) -> Result<Prompt, TemplateError> {
        let said = usize::from(self.continued().is_some());
        let mut turns = self.turns[..self.turns.len() - said].to_vec();
        if !template.source().contains("no_think") {
            without_marker(&mut turns);
        }
        if self.end == End::Closed {
            template.render_whole(&turns, self.tools.shown(), &self.parameters)
        } else {
            template.render(&turns, self.tools.shown(), &self.parameters)
        }
    }
}

/// A conversation of a training row, read as a request's is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// The messages.
    pub turns: Vec<Turn>,
    /// The tools that are offered in it.
    pub tools: Vec<Value>,
    /// What the template is told next to them.
    pub parameters: Map<String, Value>,
}

impl Dialogue {
    /// Reads `messages`, `tools`, `chat_template_kwargs` and what else makes the prompt of a request.
    ///
    /// # Errors
    /// What is wrong, by its field.
    pub fn parse(row: Map<String, Value>) -> Result<Self, String> {
        let read = Conversation::parse(&Value::Object(row)).map_err(|error| error.to_string())?;
        Ok(Self { tools: read.tools.shown().to_vec(), turns: read.turns, parameters: read.parameters })
    }
}

/// Whether the template has opened a block of thinking in the assistant's name.
pub fn opens_thinking(prompt: &Prompt) -> bool {
    prompt.last().is_some_and(|last| last.markup && last.text.trim_end().ends_with("<think>"))
}

impl Effort {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Xhigh => "xhigh",
        }
    }
}
