//! How the tools of a request constrain the answer, and the listener that finds calls in it.

pub(super) mod calls;
mod members;

use serde_json::json;

use self::calls::Listener;
use super::error::ApiError;
use super::request::{AnswerOptions, both};
use crate::engine::Constraint;
use crate::text::conversation::{Choice, Tools, rooted};

/// Adds the constraint that calls need: an answer that must be a call, or may be one although it
/// has a shape.
pub(super) fn constrain(options: &mut AnswerOptions, tools: &Tools) -> Result<(), ApiError> {
    let field = options.constraint_field;
    let call = match (&tools.choice, &options.generate.constraint) {
        (Choice::None, _) | (Choice::Auto, None | Some(Constraint::JsonObject)) => return Ok(()),
        // The answer either matches its schema, or is a call.
        (Choice::Auto, Some(Constraint::JsonSchema(answer))) => {
            let mut branches = vec![rooted(answer.clone(), "#/anyOf/0")];
            branches.extend(tools.call_schemas("#/anyOf", 1));
            json!({"anyOf": branches})
        }
        (Choice::Auto, Some(_)) => return Err(both(field, "tools")),
        (Choice::Must(_), Some(_)) => return Err(both(field, "tool_choice")),
        (Choice::Must(_), None) if options.generate.ignore_end => {
            return Err(both("ignore_eos", "tool_choice"));
        }
        (Choice::Must(_), None) => {
            options.constraint_field = "tools";
            tools.call_schema()
        }
    };
    options.generate.constraint = Some(Constraint::JsonSchema(call));
    Ok(())
}

/// The listener that finds calls in the answer; `None` if there can't be any.
pub(super) fn listener(tools: &Tools) -> Option<Listener> {
    match &tools.choice {
        Choice::None => None,
        Choice::Auto => Some(Listener::new(tools.names(), tools.parallel)),
        Choice::Must(names) => Some(Listener::opened(names.clone())),
    }
}

#[cfg(test)]
mod tests;
