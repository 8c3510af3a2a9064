//! Reads the input items of a response as turns. Calls, their outputs and thinking are separate
//! items here, and parts of turns or turns there.

use std::collections::HashMap;

use serde_json::Value;

use crate::api::dialect::{self, string, unread};
use crate::api::error::ApiError;
use crate::text::conversation::arguments;
use crate::text::fields::{kind, short};
use crate::text::{Call, Turn};

/// The turns of the conversation.
pub(super) fn turns(input: Option<&Value>) -> Result<Vec<Turn>, ApiError> {
    let items = match input {
        None => return Err(ApiError::field("input", "is missing")),
        Some(Value::String(text)) => return Ok(vec![Turn::new("user", text)]),
        Some(Value::Array(items)) if items.is_empty() => {
            return Err(ApiError::field("input", "is empty, expected a text or items"));
        }
        Some(Value::Array(items)) => items,
        Some(other) => {
            let message = format!("found {}, expected a string or an array of items", kind(other));
            return Err(ApiError::field("input", message));
        }
    };
    let mut said = Said::default();
    for (index, item) in items.iter().enumerate() {
        said.item(&format!("input[{index}]"), item)?;
    }
    said.finish();
    Ok(said.all)
}

/// The turns so far.
#[derive(Default)]
struct Said {
    all: Vec<Turn>,
    /// The assistant's current turn: consecutive thinking, text and calls form one turn.
    thinking: String,
    text: Option<String>,
    calls: Vec<Call>,
    /// Names of the called functions by call id, which an output doesn't repeat.
    called: HashMap<String, String>,
}

impl Said {
    fn item(&mut self, path: &str, item: &Value) -> Result<(), ApiError> {
        match item.get("type").and_then(Value::as_str) {
            Some("message") | None if item.get("role").is_some() => self.message(path, item),
            Some("function_call") => {
                let id = string(&format!("{path}.call_id"), item.get("call_id"))?;
                let name = string(&format!("{path}.name"), item.get("name"))?;
                let written = string(&format!("{path}.arguments"), item.get("arguments"))?;
                self.called.insert(id.to_owned(), name.to_owned());
                let arguments = arguments(written.to_owned());
                self.calls.push(Call { id: id.to_owned(), name: name.to_owned(), arguments });
                Ok(())
            }
            Some("function_call_output") => {
                self.finish();
                let id = string(&format!("{path}.call_id"), item.get("call_id"))?;
                let output = item.get("output").unwrap_or(&Value::Null);
                let text = texts(&format!("{path}.output"), output)?;
                let name = self.called.get(id).cloned();
                self.all.push(Turn { call_id: Some(id.to_owned()), name, ..Turn::new("tool", text) });
                Ok(())
            }
            Some("reasoning") => self.reasoning(path, item),
            found => {
                let found = found.map_or_else(|| "nothing".to_owned(), |found| format!("{found:?}"));
                let message = format!(
                    "found {found}, expected message, reasoning, function_call or function_call_output"
                );
                Err(ApiError::field(format!("{path}.type"), message))
            }
        }
    }

    fn message(&mut self, path: &str, item: &Value) -> Result<(), ApiError> {
        let content = item.get("content").unwrap_or(&Value::Null);
        let text = texts(&format!("{path}.content"), content)?;
        match item.get("role").and_then(Value::as_str) {
            Some("assistant") => {
                // A text after a text, or after calls, starts a new turn.
                if self.text.is_some() || !self.calls.is_empty() {
                    self.finish();
                }
                self.text = Some(text);
            }
            Some(role @ ("user" | "system" | "developer")) => {
                self.finish();
                self.all.push(Turn::new(if role == "user" { "user" } else { "system" }, text));
            }
            _ => {
                let found = item.get("role").map_or_else(|| "nothing".to_owned(), short);
                let message = format!("found {found}, expected user, assistant, system or developer");
                return Err(ApiError::field(format!("{path}.role"), message));
            }
        }
        Ok(())
    }

    /// The thinking as it was sent, or else its summary. It belongs to the item after it.
    fn reasoning(&mut self, path: &str, item: &Value) -> Result<(), ApiError> {
        if self.text.is_some() || !self.calls.is_empty() {
            self.finish();
        }
        let part = |name: &str| match item.get(name) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(parts) => texts(&format!("{path}.{name}"), parts),
        };
        let shown = part("content")?;
        self.thinking.push_str(&if shown.is_empty() { part("summary")? } else { shown });
        Ok(())
    }

    /// Ends the assistant's turn.
    fn finish(&mut self) {
        let (thinking, text) = (std::mem::take(&mut self.thinking), self.text.take());
        let calls = std::mem::take(&mut self.calls);
        if text.is_none() && calls.is_empty() && thinking.is_empty() {
            return;
        }
        let reasoning = Some(thinking).filter(|thinking| !thinking.is_empty());
        self.all.push(Turn { reasoning, calls, ..Turn::new("assistant", text.unwrap_or_default()) });
    }
}

/// The text of a string, or of parts.
fn texts(path: &str, content: &Value) -> Result<String, ApiError> {
    let part = |path: &str, part: &Value| {
        let key = match part.get("type").and_then(Value::as_str) {
            Some("input_text" | "output_text" | "text" | "summary_text" | "reasoning_text") => "text",
            Some("refusal") => "refusal",
            _ => return Err(unread(path, part, "text is read")),
        };
        string(&format!("{path}.{key}"), part.get(key)).map(str::to_owned)
    };
    Ok(dialect::texts(path, content, "text parts", part)?.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(input: Value) -> Result<Vec<Turn>, String> {
        turns(Some(&input)).map_err(|error| error.to_string())
    }

    #[test]
    fn items_that_follow_each_other_are_one_message_of_the_assistant() {
        let input = json!([
            {"role": "developer", "content": "S"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "U"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I look."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "hear", "arguments": "{\"q\":1}"},
            {"type": "function_call_output", "call_id": "c1", "output": "a"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "b"}]},
            {"role": "assistant", "content": "Done."},
        ]);
        let call =
            |id: &str, name: &str, arguments: Value| Call { id: id.into(), name: name.into(), arguments };
        let output = |id: &str, name: &str, text: &str| Turn {
            call_id: Some(id.into()),
            name: Some(name.into()),
            ..Turn::new("tool", text)
        };
        let expected = vec![
            Turn::new("system", "S"),
            Turn::new("user", "U"),
            Turn {
                reasoning: Some("I look.".into()),
                calls: vec![call("c1", "look", json!({})), call("c2", "hear", json!({"q": 1}))],
                ..Turn::new("assistant", "Wait.")
            },
            output("c1", "look", "a"),
            output("c2", "hear", "b"),
            Turn::new("assistant", "Done."),
        ];
        assert_eq!(read(input), Ok(expected));
        assert_eq!(read(json!("U")), Ok(vec![Turn::new("user", "U")]));
    }

    #[test]
    fn mistakes_name_their_place() {
        let user = |part: Value| json!([{"role": "user", "content": [part]}]);
        for (input, start) in [
            (json!(5), "input: found a number"),
            (json!([]), "input: is empty"),
            (json!([{"type": "item_reference", "id": "x"}]), "input[0].type: found \"item_reference\""),
            (json!([{"content": "x"}]), "input[0].type: found nothing"),
            (json!([{"role": "robot", "content": "x"}]), "input[0].role: found \"robot\""),
            (json!([{"role": "user"}]), "input[0].content: found null"),
            (user(json!({"type": "input_image"})), "input[0].content[0]: image input is not supported"),
            (user(json!({"type": "input_file"})), "input[0].content[0].type: found \"input_file\""),
            (user(json!({"type": "input_text"})), "input[0].content[0].text: found nothing"),
            (json!([{"type": "function_call", "name": "f"}]), "input[0].call_id: found nothing"),
        ] {
            let error = read(input.clone()).unwrap_err();
            assert!(error.starts_with(start), "{input}: {error}");
        }
    }
}
