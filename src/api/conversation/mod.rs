//! A conversation as the API answers it: how its tools constrain the answer, and the listener that
//! finds calls in it.

pub(super) mod calls;
mod members;

use serde_json::json;

use self::calls::Listener;
use super::body::JsonBody;
use super::error::ApiError;
use super::request::{Manner, both};
use crate::engine::{Constraint, Prompt, Segment};
use crate::text::conversation::{self, Choice, PromptError, opens_thinking, rooted};
use crate::text::template::{ChatTemplate, OPEN, TemplateError};

/// A conversation to be answered.
#[derive(Debug)]
pub(super) struct Conversation(conversation::Conversation);

impl Conversation {
    /// Validates the part of a body that determines the prompt.
    pub(super) fn parse(body: &JsonBody) -> Result<Self, ApiError> {
        Ok(Self(conversation::Conversation::parse(&body.0)?))
    }

    /// Checks that the request doesn't contradict itself about the end of the prompt.
    pub(super) fn check_end(&self) -> Result<(), ApiError> {
        Ok(self.0.check_end()?)
    }

    /// Sets the template variables that the request leaves out.
    pub(super) fn fill_in(&mut self, thinks: bool) {
        self.0.fill_in(thinks);
    }

    /// The prompt, up to where the answer begins.
    pub(super) fn prompt(&self, template: &ChatTemplate) -> Result<Prompt, ApiError> {
        self.0.prompt(template).map_err(|error| match error {
            PromptError::Field(error) => error.into(),
            PromptError::Template(error) => refused(&error),
        })
    }

    /// Adds the constraint that a forced call needs.
    pub(super) fn constrain(&self, manner: &mut Manner) -> Result<(), ApiError> {
        let call = match &self.0.tools.choice {
            Choice::None => return Ok(()),
            Choice::Auto if manner.constraint.is_none() => return Ok(()),
            Choice::Auto => match &manner.constraint {
                // The answer either matches its schema, or is a call.
                Some(Constraint::JsonSchema(answer)) => {
                    let mut branches = vec![rooted(answer.clone(), "#/anyOf/0")];
                    branches.extend(self.0.tools.call_schemas("#/anyOf", 1));
                    json!({"anyOf": branches})
                }
                Some(Constraint::JsonObject) => return Ok(()),
                _ => return Err(both(manner.constraint_field, "tools")),
            },
            Choice::Must(_) if manner.constraint.is_some() => {
                return Err(both(manner.constraint_field, "tool_choice"));
            }
            Choice::Must(_) if manner.ignore_end => return Err(both("ignore_eos", "tool_choice")),
            Choice::Must(_) => self.0.tools.call_schema(),
        };
        if manner.constraint.is_none() {
            manner.constraint_field = "tools";
        }
        manner.constraint = Some(Constraint::JsonSchema(call));
        Ok(())
    }

    /// The prompt for an answer that is constrained from its first character: closes thinking that
    /// the template opened, and opens a forced call.
    pub(super) fn prompt_for(&self, template: &ChatTemplate, manner: &Manner) -> Result<Prompt, ApiError> {
        let mut prompt = self.0.rendered(template).map_err(|error| refused(&error))?;
        if manner.constraint.is_some() && opens_thinking(&prompt) {
            prompt.push(Segment::markup("\n</think>\n\n"));
        }
        let mut prompt = self.0.go_on(prompt)?;
        if matches!(self.0.tools.choice, Choice::Must(_)) {
            prompt.push(Segment::markup(format!("{OPEN}\n")));
        }
        Ok(prompt)
    }

    /// The listener that finds calls in the answer; `None` if there can't be any.
    pub(super) fn listener(&self) -> Option<Listener> {
        match &self.0.tools.choice {
            Choice::None => None,
            Choice::Auto => Some(Listener::new(self.0.tools.names(), self.0.tools.parallel)),
            Choice::Must(names) => Some(Listener::opened(names.clone())),
        }
    }
}

/// The error for a template that renders no prompt: the conversation's fault or the template's.
fn refused(error: &TemplateError) -> ApiError {
    match error {
        TemplateError::Refused(_) => ApiError::field("messages", error.to_string()),
        TemplateError::Syntax(_) | TemplateError::Broken(_) => ApiError::Model(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
