//! A conversation: its messages and tools, and the prompt that a template renders from them.

mod message;
mod tools;

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value};

pub use self::message::arguments;
use self::message::{Message, turns, without_marker};
use self::tools::Tool;
pub use self::tools::{Choice, Tools, rooted};
use super::fields::{self, FieldError};
use super::template::{ChatTemplate, OPEN, TemplateError, Turn};
use super::{Prompt, Segment};
use crate::native::local_time;

/// The messages, as written in the body.
#[derive(Debug, Deserialize)]
struct MessageFields {
    messages: Vec<Message>,
}

/// The other fields, as written in the body.
#[derive(Debug, Deserialize)]
struct ConversationFields {
    tools: Option<Vec<Tool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning_effort: Option<Effort>,
    chat_template_kwargs: Option<Map<String, Value>>,
    add_generation_prompt: Option<bool>,
    /// vLLM's field. Here, a final assistant message is continued by default.
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

/// A parsed conversation, and where its prompt ends.
#[derive(Debug)]
pub struct Conversation {
    turns: Vec<Turn>,
    /// The tools that may be called.
    pub tools: Tools,
    parameters: Map<String, Value>,
    end: End,
}

/// Why a conversation has no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// A message can't be rendered.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The template fails on the conversation or refuses it.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Where the prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Where a new answer begins, or after the assistant's text if that is the last message.
    Usual,
    /// After the assistant's text, which must exist.
    GoesOn,
    /// Where a new answer begins, whatever the last message is.
    New,
    /// Where the last message ends.
    Closed,
    /// The request asks for both, which is an error.
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
    /// Takes the part of a body that determines the prompt, and validates it.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn take(body: &mut Map<String, Value>) -> Result<Self, FieldError> {
        let MessageFields { messages } = fields::take(body)?;
        if messages.is_empty() {
            return Err(FieldError::new("messages", "is empty, expected at least one message"));
        }
        Self::of(turns(messages), body)
    }

    /// A conversation of these messages; the rest is taken from the body.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn of(turns: Vec<Turn>, body: &mut Map<String, Value>) -> Result<Self, FieldError> {
        // Templates are shown the tools as they were written.
        let shown = body.get("tools").cloned();
        let written: ConversationFields = fields::take(body)?;
        let mut parameters = Map::new();
        if let Some(effort) = written.reasoning_effort {
            parameters.insert("enable_thinking".to_owned(), (effort != Effort::None).into());
            parameters.insert("reasoning_effort".to_owned(), effort.name().into());
        }
        // `chat_template_kwargs` address the template directly, so they win.
        parameters.extend(written.chat_template_kwargs.unwrap_or_default());
        let end = End::new(written.add_generation_prompt, written.continue_final_message);
        let parallel = written.parallel_tool_calls.unwrap_or(true);
        let tools = Tools::new(written.tools, shown, written.tool_choice.as_ref(), parallel)?;
        Ok(Self { turns, tools, parameters, end })
    }

    /// Checks that the request doesn't contradict itself about the end of the prompt.
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
            return Err(FieldError::new(field, "the last message is not an assistant text"));
        }
        let mut texts = self.turns.iter().rev().map(|turn| turn.role == "assistant" && turn.calls.is_empty());
        if continued && texts.nth(1) == Some(true) {
            let field = format!("messages[{}]", self.turns.len() - 1);
            let message = "the last message is continued, so the message before it can't be the assistant's";
            return Err(FieldError::new(field, message));
        }
        Ok(())
    }

    /// Sets whether the model thinks, unless the request does.
    pub fn think_by_default(&mut self, thinks: bool) {
        self.parameters.entry("enable_thinking").or_insert(thinks.into());
    }

    /// The prompt up to where the answer begins; after the assistant's last text, if that is the
    /// last message.
    ///
    /// # Errors
    /// A message that can't be rendered; the template's error.
    pub fn prompt(&self, template: &ChatTemplate) -> Result<Prompt, PromptError> {
        Ok(self.continue_in(self.rendered(template)?)?)
    }

    /// The prompt for an answer that may have to begin in a certain way: a `constrained` answer
    /// doesn't think, so thinking that the template opened is closed, and a call that must be made
    /// is opened.
    ///
    /// # Errors
    /// As [`Conversation::prompt`].
    pub fn answer_prompt(&self, template: &ChatTemplate, constrained: bool) -> Result<Prompt, PromptError> {
        let mut prompt = self.rendered(template)?;
        if constrained && opens_thinking(&prompt) {
            prompt.push(Segment::markup("\n</think>\n\n"));
        }
        let mut prompt = self.continue_in(prompt)?;
        if matches!(self.tools.choice, Choice::Must(_)) {
            prompt.push(Segment::markup(format!("{OPEN}\n")));
        }
        Ok(prompt)
    }

    /// The assistant's last text, if the answer has to continue it.
    fn continued(&self) -> Option<&str> {
        if matches!(self.end, End::New | End::Closed) {
            return None;
        }
        let last = self.turns.last().filter(|turn| turn.role == "assistant" && turn.calls.is_empty())?;
        Some(last.content.as_str()).filter(|said| !said.is_empty())
    }

    /// Appends that text to the prompt. It is part of the answer, so it can't follow opened
    /// thinking, whose end would be unknown.
    fn continue_in(&self, mut prompt: Prompt) -> Result<Prompt, FieldError> {
        let Some(said) = self.continued() else { return Ok(prompt) };
        let last = self.turns.len() - 1;
        if self.turns[last].reasoning.is_some() {
            let message = "a final assistant message is continued, which can't be combined with its reasoning: leave the \
                           reasoning out, or end with another role's message";
            return Err(FieldError::new(format!("messages[{last}].reasoning_content"), message));
        }
        if !opens_thinking(&prompt) {
            prompt.push(Segment::plain(said));
            return Ok(prompt);
        }
        let field = format!("messages[{last}]");
        let message = "a final assistant message is continued, which can't be combined with thinking: set \
                       reasoning_effort to \"none\", or end with another role's message";
        Err(FieldError::new(field, message))
    }

    /// The prompt without the assistant's last text, if the answer continues that text.
    fn rendered(&self, template: &ChatTemplate) -> Result<Prompt, TemplateError> {
        let said = usize::from(self.continued().is_some());
        let mut turns = self.turns[..self.turns.len() - said].to_vec();
        if !template.source().contains("no_think") {
            without_marker(&mut turns);
        }
        let parameters = self.dated(template);
        if self.end == End::Closed {
            template.render_whole(&turns, self.tools.shown(), &parameters)
        } else {
            template.render(&turns, self.tools.shown(), &parameters)
        }
    }

    /// The parameters with the dates that llama-server gives to templates, if this template asks
    /// for them and the request doesn't set them.
    fn dated(&self, template: &ChatTemplate) -> Cow<'_, Map<String, Value>> {
        let mut parameters = Cow::Borrowed(&self.parameters);
        for (name, format) in [("date_string", "%d %b %Y"), ("datetime", "%b %d %Y")] {
            if template.source().contains(name)
                && !parameters.contains_key(name)
                && let Some(today) = local_time(format, template.now())
            {
                parameters.to_mut().insert(name.to_owned(), today.into());
            }
        }
        parameters
    }
}

/// A conversation of a training row, parsed like that of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// The messages.
    pub turns: Vec<Turn>,
    /// The tools offered in it.
    pub tools: Vec<Value>,
    /// Further variables for the template.
    pub parameters: Map<String, Value>,
}

impl Dialogue {
    /// Reads `messages`, `tools`, `chat_template_kwargs` and the other fields that determine a
    /// request's prompt.
    ///
    /// # Errors
    /// The field that is wrong, and why.
    pub fn parse(mut row: Map<String, Value>) -> Result<Self, String> {
        let read = Conversation::take(&mut row).map_err(|error| error.to_string())?;
        Ok(Self { tools: read.tools.shown().to_vec(), turns: read.turns, parameters: read.parameters })
    }
}

/// Whether the template has opened a thinking block for the assistant.
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

#[cfg(test)]
mod tests;
