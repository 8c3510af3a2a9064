//! Reads messages of blocks as turns. Tool calls and results are blocks within messages here, and
//! turns of their own, or parts of turns, there.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::api::dialect::{self, string, unread};
use crate::api::error::ApiError;
use crate::text::fields::{kind, short};
use crate::text::{Call, Turn};

/// Prefix of a result that is an error, because templates have no other way to say so.
const ERROR: &str = "Error: ";

/// The turns of the conversation.
pub(super) fn turns(written: Option<&Value>) -> Result<Vec<Turn>, ApiError> {
    let written = written.ok_or_else(|| ApiError::field("messages", "is missing"))?;
    let Value::Array(written) = written else {
        return Err(ApiError::field("messages", format!("found {}, expected an array", kind(written))));
    };
    if written.is_empty() {
        return Err(ApiError::field("messages", "is empty, expected at least one message"));
    }
    let mut all = Vec::new();
    // Names of the called functions by call id, which a result doesn't repeat.
    let mut called = HashMap::new();
    for (index, message) in written.iter().enumerate() {
        let path = format!("messages[{index}]");
        match message.get("role").and_then(Value::as_str) {
            Some("user") => user(&path, message, &called, &mut all)?,
            Some("assistant") => all.push(assistant(&path, message, &mut called)?),
            Some("system") => {
                let text = text_blocks(&format!("{path}.content"), content(&path, message)?)?.concat();
                all.push(Turn::new("system", text));
            }
            _ => {
                let found = message.get("role").map_or_else(|| "nothing".to_owned(), short);
                let message = format!("found {found}, expected \"user\", \"assistant\" or \"system\"");
                return Err(ApiError::field(format!("{path}.role"), message));
            }
        }
    }
    Ok(all)
}

fn content<'a>(path: &str, message: &'a Value) -> Result<&'a Value, ApiError> {
    message.get("content").ok_or_else(|| ApiError::field(format!("{path}.content"), "is missing"))
}

/// Results of calls first, because they must follow the calls, then the user's text.
fn user(
    path: &str,
    message: &Value,
    called: &HashMap<String, String>,
    all: &mut Vec<Turn>,
) -> Result<(), ApiError> {
    let written = content(path, message)?;
    let Value::Array(blocks) = written else {
        let text = text_blocks(&format!("{path}.content"), written)?.concat();
        all.push(Turn::new("user", text));
        return Ok(());
    };
    let (mut said, mut results) = (Vec::new(), false);
    for (index, block) in blocks.iter().enumerate() {
        let path = format!("{path}.content[{index}]");
        if block.get("type").is_some_and(|kind| kind == "tool_result") {
            all.push(result(&path, block, called)?);
            results = true;
        } else {
            said.push(text_block(&path, block)?);
        }
    }
    if !results || !said.is_empty() {
        all.push(Turn::new("user", said.concat()));
    }
    Ok(())
}

fn result(path: &str, block: &Value, called: &HashMap<String, String>) -> Result<Turn, ApiError> {
    let id = string(&format!("{path}.tool_use_id"), block.get("tool_use_id"))?;
    let mut text = match block.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(content) => text_blocks(&format!("{path}.content"), content)?.concat(),
    };
    if block.get("is_error") == Some(&Value::Bool(true)) {
        text.insert_str(0, ERROR);
    }
    let name = called.get(id).cloned();
    Ok(Turn { call_id: Some(id.to_owned()), name, ..Turn::new("tool", text) })
}

fn assistant(path: &str, message: &Value, called: &mut HashMap<String, String>) -> Result<Turn, ApiError> {
    let written = content(path, message)?;
    let Value::Array(blocks) = written else {
        let text = text_blocks(&format!("{path}.content"), written)?.concat();
        return Ok(Turn::new("assistant", text));
    };
    let (mut text, mut thinking, mut calls) = (String::new(), String::new(), Vec::new());
    for (index, block) in blocks.iter().enumerate() {
        let path = format!("{path}.content[{index}]");
        match block.get("type").and_then(Value::as_str) {
            Some("thinking") => {
                thinking.push_str(string(&format!("{path}.thinking"), block.get("thinking"))?);
            }
            Some("tool_use") => {
                let id = string(&format!("{path}.id"), block.get("id"))?;
                let name = string(&format!("{path}.name"), block.get("name"))?;
                let arguments = match block.get("input") {
                    None | Some(Value::Null) => json!({}),
                    Some(input @ Value::Object(_)) => input.clone(),
                    Some(other) => {
                        let message = format!("found {}, expected an object", kind(other));
                        return Err(ApiError::field(format!("{path}.input"), message));
                    }
                };
                called.insert(id.to_owned(), name.to_owned());
                calls.push(Call { id: id.to_owned(), name: name.to_owned(), arguments });
            }
            _ => text.push_str(&text_block(&path, block)?),
        }
    }
    let reasoning = Some(thinking).filter(|thinking| !thinking.is_empty());
    Ok(Turn { reasoning, calls, ..Turn::new("assistant", text) })
}

/// The texts of a string, or of text blocks.
pub(super) fn text_blocks(path: &str, content: &Value) -> Result<Vec<String>, ApiError> {
    dialect::texts(path, content, "blocks", text_block)
}

/// The text of a text block, or of a plain-text document.
fn text_block(path: &str, block: &Value) -> Result<String, ApiError> {
    match block.get("type").and_then(Value::as_str) {
        Some("text") => string(&format!("{path}.text"), block.get("text")).map(str::to_owned),
        Some("document") if block.pointer("/source/type").is_some_and(|kind| kind == "text") => {
            string(&format!("{path}.source.data"), block.pointer("/source/data")).map(str::to_owned)
        }
        _ => Err(unread(path, block, "text, calls and their results are read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(written: Value) -> Result<Vec<Turn>, String> {
        turns(Some(&written)).map_err(|error| error.to_string())
    }

    #[test]
    fn calls_and_results_stand_apart_and_results_come_first() {
        let written = json!([
            {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "I look.", "signature": "s"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "x"}},
                {"type": "tool_use", "id": "t2", "name": "hear"},
            ]},
            {"role": "user", "content": [
                {"type": "text", "text": "Here:"},
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "gone", "is_error": true},
            ]},
        ]);
        let call =
            |id: &str, name: &str, arguments: Value| Call { id: id.into(), name: name.into(), arguments };
        let result = |id: &str, name: &str, text: &str| Turn {
            call_id: Some(id.into()),
            name: Some(name.into()),
            ..Turn::new("tool", text)
        };
        let expected = vec![
            Turn::new("user", "What now?"),
            Turn {
                reasoning: Some("I look.".into()),
                calls: vec![call("t1", "look", json!({"at": "x"})), call("t2", "hear", json!({}))],
                ..Turn::new("assistant", "Let me see.")
            },
            result("t1", "look", "a"),
            result("t2", "hear", "Error: gone"),
            Turn::new("user", "Here:"),
        ];
        assert_eq!(read(written), Ok(expected));
    }

    #[test]
    fn mistakes_name_their_place() {
        let user = |content: Value| json!([{"role": "user", "content": content}]);
        let image = json!({"type": "image", "source": {"type": "base64", "data": "AAAA"}});
        for (written, start) in [
            (json!("x"), "messages: found a string"),
            (json!([]), "messages: is empty"),
            (json!([{"content": "x"}]), "messages[0].role: found nothing"),
            (json!([{"role": "user"}]), "messages[0].content: is missing"),
            (user(json!(5)), "messages[0].content: found a number"),
            (user(json!([image])), "messages[0].content[0]: image input is not supported"),
            (
                user(json!([{"type": "tool_result", "tool_use_id": "t", "content": [image]}])),
                "messages[0].content[0].content[0]: image input is not supported",
            ),
            (user(json!([{"type": "tool_result"}])), "messages[0].content[0].tool_use_id: found nothing"),
            (
                user(json!([{"type": "search_result"}])),
                "messages[0].content[0].type: found \"search_result\"",
            ),
            (
                json!([{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": 3}]}]),
                "messages[0].content[0].input: found a number",
            ),
        ] {
            let error = read(written.clone()).unwrap_err();
            assert!(error.starts_with(start), "{written}: {error}");
        }
    }
}
