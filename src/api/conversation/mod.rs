//! A conversation: its messages and tools, and the prompt that a template renders from them.

pub(super) mod calls;
mod members;
mod message;
mod tools;

use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::calls::Listener;
use self::message::{Message, turns, without_marker};
use self::tools::{Choice, Tools};
use super::body::JsonBody;
use super::error::ApiError;
use super::request::{Manner, both};
use crate::engine::{Constraint, Prompt, Segment};
use crate::native::local_time;
use crate::text::template::{ChatTemplate, OPEN, TemplateError, Turn};

/// As written in the body.
#[derive(Debug, Deserialize)]
struct ConversationFields {
    messages: Vec<Message>,
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

/// The validated conversation.
#[derive(Debug)]
pub(super) struct Conversation {
    turns: Vec<Turn>,
    tools: Tools,
    parameters: Map<String, Value>,
    end: End,
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
    /// Validates the part of a body that determines the prompt.
    pub(super) fn parse(body: &JsonBody) -> Result<Self, ApiError> {
        let written: ConversationFields = body.parse()?;
        if written.messages.is_empty() {
            return Err(ApiError::field("messages", "is empty, expected at least one message"));
        }
        let mut parameters = Map::new();
        if let Some(effort) = written.reasoning_effort {
            parameters.insert("enable_thinking".to_owned(), (effort != Effort::None).into());
            parameters.insert("reasoning_effort".to_owned(), effort.name().into());
        }
        // `chat_template_kwargs` address the template directly, so they win.
        parameters.extend(written.chat_template_kwargs.unwrap_or_default());
        let end = End::new(written.add_generation_prompt, written.continue_final_message);
        Ok(Self { turns: turns(written.messages), tools: Tools::parse(body)?, parameters, end })
    }

    /// Checks that the request doesn't contradict itself about the end of the prompt.
    pub(super) fn check_end(&self) -> Result<(), ApiError> {
        let field = "continue_final_message";
        if self.end == End::Both {
            return Err(ApiError::field(field, "can't be combined with add_generation_prompt: true"));
        }
        let continued = self.continued().is_some();
        if self.end == End::GoesOn && !continued {
            return Err(ApiError::field(field, "the last message is no text of the assistant"));
        }
        let mut texts = self.turns.iter().rev().map(|turn| turn.role == "assistant" && turn.calls.is_empty());
        if continued && texts.nth(1) == Some(true) {
            let field = format!("messages[{}]", self.turns.len() - 1);
            let message =
                "the last message is gone on with, which another message of the assistant can't precede";
            return Err(ApiError::field(field, message));
        }
        Ok(())
    }

    /// Sets whether the model thinks, and the dates that llama-server's templates use, unless the
    /// request sets them.
    pub(super) fn fill_in(&mut self, thinks: bool) {
        self.parameters.entry("enable_thinking").or_insert(thinks.into());
        for (name, format) in [("date_string", "%d %b %Y"), ("datetime", "%b %d %Y")] {
            if let Some(today) = local_time(format, SystemTime::now()) {
                self.parameters.entry(name).or_insert(today.into());
            }
        }
    }

    /// Adds the constraint that a forced call needs.
    pub(super) fn constrain(&self, manner: &mut Manner) -> Result<(), ApiError> {
        let call = match &self.tools.choice {
            Choice::None => return Ok(()),
            Choice::Auto if manner.constraint.is_none() => return Ok(()),
            Choice::Auto => match &manner.constraint {
                // The answer either matches its schema, or is a call.
                Some(Constraint::JsonSchema(answer)) => {
                    let mut branches = vec![tools::rooted(answer.clone(), "#/anyOf/0")];
                    branches.extend(self.tools.call_schemas("#/anyOf", 1));
                    json!({"anyOf": branches})
                }
                Some(Constraint::JsonObject) => return Ok(()),
                _ => return Err(both(manner.constraint_field, "tools")),
            },
            Choice::Must(_) if manner.constraint.is_some() => {
                return Err(both(manner.constraint_field, "tool_choice"));
            }
            Choice::Must(_) if manner.ignore_end => return Err(both("ignore_eos", "tool_choice")),
            Choice::Must(_) => self.tools.call_schema(),
        };
        if manner.constraint.is_none() {
            manner.constraint_field = "tools";
        }
        manner.constraint = Some(Constraint::JsonSchema(call));
        Ok(())
    }

    /// The prompt up to where the answer begins; after the assistant's last text, if that is the
    /// last message.
    pub(super) fn prompt(&self, template: &ChatTemplate) -> Result<Prompt, ApiError> {
        self.go_on(self.rendered(template)?)
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
    fn go_on(&self, mut prompt: Prompt) -> Result<Prompt, ApiError> {
        let Some(said) = self.continued() else { return Ok(prompt) };
        let last = self.turns.len() - 1;
        if self.turns[last].reasoning.is_some() {
            let message = "an assistant's message at the end is gone on with, which can't be combined with what it thought \
                           before: leave that out, or let the last message be another's";
            return Err(ApiError::field(format!("messages[{last}].reasoning_content"), message));
        }
        if !opens_thinking(&prompt) {
            prompt.push(Segment::plain(said));
            return Ok(prompt);
        }
        let field = format!("messages[{last}]");
        let message = "an assistant's message at the end is gone on with, which can't be combined with thinking: turn that off \
                       with reasoning_effort \"none\", or let the last message be another's";
        Err(ApiError::field(field, message))
    }

    fn rendered(&self, template: &ChatTemplate) -> Result<Prompt, ApiError> {
        let said = usize::from(self.continued().is_some());
        let mut turns = self.turns[..self.turns.len() - said].to_vec();
        if !template.source().contains("no_think") {
            without_marker(&mut turns);
        }
        let rendered = if self.end == End::Closed {
            template.render_whole(&turns, self.tools.shown(), &self.parameters)
        } else {
            template.render(&turns, self.tools.shown(), &self.parameters)
        };
        rendered.map_err(|error| match error {
            TemplateError::Refused(_) => ApiError::field("messages", error.to_string()),
            TemplateError::Syntax(_) | TemplateError::Broken(_) => ApiError::Model(error.to_string()),
        })
    }

    /// The prompt for an answer that is constrained from its first character: closes thinking that
    /// the template opened, and opens a forced call.
    pub(super) fn prompt_for(&self, template: &ChatTemplate, manner: &Manner) -> Result<Prompt, ApiError> {
        let mut prompt = self.rendered(template)?;
        if manner.constraint.is_some() && opens_thinking(&prompt) {
            prompt.push(Segment::markup("\n</think>\n\n"));
        }
        let mut prompt = self.go_on(prompt)?;
        if matches!(self.tools.choice, Choice::Must(_)) {
            prompt.push(Segment::markup(format!("{OPEN}\n")));
        }
        Ok(prompt)
    }

    /// The listener that finds calls in the answer; `None` if there can't be any.
    pub(super) fn listener(&self) -> Option<Listener> {
        match &self.tools.choice {
            Choice::None => None,
            Choice::Auto => Some(Listener::new(self.tools.names(), self.tools.parallel)),
            Choice::Must(names) => Some(Listener::opened(names.clone())),
        }
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
    pub fn parse(row: Map<String, Value>) -> Result<Self, String> {
        let read = Conversation::parse(&JsonBody(Value::Object(row))).map_err(|error| error.to_string())?;
        Ok(Self { tools: read.tools.shown().to_vec(), turns: read.turns, parameters: read.parameters })
    }
}

/// Whether the template has opened a thinking block for the assistant.
pub(super) fn opens_thinking(prompt: &Prompt) -> bool {
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
