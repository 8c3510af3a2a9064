//! Translates the input items of a response into chat messages. Calls, their outputs and thinking
//! are separate items here, and parts of messages or messages there.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::api::dialect::{self, string, unread};
use crate::api::error::ApiError;
use crate::text::fields::{kind, short};

/// The conversation in chat's form.
pub(super) fn messages(input: Option<&Value>) -> Result<Vec<Value>, ApiError> {
    let items = match input {
        None => return Err(ApiError::field("input", "is missing")),
        Some(Value::String(text)) => return Ok(vec![json!({"role": "user", "content": text})]),
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

/// The messages so far.
#[derive(Default)]
struct Said {
    all: Vec<Value>,
    /// The assistant's current message: consecutive thinking, text and calls form one message.
    thinking: String,
    text: Option<String>,
    calls: Vec<Value>,
    /// Names of the called functions by call id, which an output doesn't repeat.
    called: HashMap<String, Value>,
}

impl Said {
    fn item(&mut self, path: &str, item: &Value) -> Result<(), ApiError> {
        match item.get("type").and_then(Value::as_str) {
            Some("message") | None if item.get("role").is_some() => self.message(path, item),
            Some("function_call") => {
                let id = string(&format!("{path}.call_id"), item.get("call_id"))?;
                let name = string(&format!("{path}.name"), item.get("name"))?;
                let arguments = string(&format!("{path}.arguments"), item.get("arguments"))?;
                self.called.insert(id.to_owned(), name.into());
                let function = json!({"name": name, "arguments": arguments});
                self.calls.push(json!({"id": id, "type": "function", "function": function}));
                Ok(())
            }
            Some("function_call_output") => {
                self.finish();
                let id = string(&format!("{path}.call_id"), item.get("call_id"))?;
                let output = item.get("output").unwrap_or(&Value::Null);
                let text = texts(&format!("{path}.output"), output)?;
                let mut message = json!({"role": "tool", "tool_call_id": id, "content": text});
                if let Some(name) = self.called.get(id) {
                    message["name"] = name.clone();
                }
                self.all.push(message);
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
                // A text after a text, or after calls, starts a new message.
                if self.text.is_some() || !self.calls.is_empty() {
                    self.finish();
                }
                self.text = Some(text);
            }
            Some(role @ ("user" | "system" | "developer")) => {
                self.finish();
                self.all.push(json!({"role": role, "content": text}));
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

    /// Ends the assistant's message.
    fn finish(&mut self) {
        let (thinking, text) = (std::mem::take(&mut self.thinking), self.text.take());
        let calls = std::mem::take(&mut self.calls);
        if text.is_none() && calls.is_empty() && thinking.is_empty() {
            return;
        }
        let mut message = json!({"role": "assistant", "content": text.unwrap_or_default()});
        if !thinking.is_empty() {
            message["reasoning_content"] = thinking.into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        self.all.push(message);
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

    fn translated(input: Value) -> Result<Value, String> {
        messages(Some(&input)).map(Value::from).map_err(|error| error.to_string())
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
        let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let expected = json!([
            {"role": "developer", "content": "S"},
            {"role": "user", "content": "U"},
            {
                "role": "assistant", "content": "Wait.", "reasoning_content": "I look.",
                "tool_calls": [call("c1", "look", "{}"), call("c2", "hear", "{\"q\":1}")],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "a", "name": "look"},
            {"role": "tool", "tool_call_id": "c2", "content": "b", "name": "hear"},
            {"role": "assistant", "content": "Done."},
        ]);
        assert_eq!(translated(input), Ok(expected));
        assert_eq!(translated(json!("U")), Ok(json!([{"role": "user", "content": "U"}])));
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
            let error = translated(input.clone()).unwrap_err();
            assert!(error.starts_with(start), "{input}: {error}");
        }
    }
}
