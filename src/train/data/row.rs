//! One row of training data, in any of its three forms.

use serde_json::{Map, Value};

use crate::model::tokenizer::Message;

/// What a row says, and which part of it is learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A conversation; its last message, the assistant's, is learnt.
    Chat(Vec<Message>),
    /// A text and how it goes on; only that is learnt.
    Completion {
        /// What is read.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
    /// Every token is learnt.
    Text(String),
}

const FORMS: &str = "\"messages\", or \"prompt\" and \"completion\", or \"text\"";

impl Row {
    /// Reads a line of JSONL: an object with [`FORMS`]; other keys are passed over.
    ///
    /// # Errors
    /// What is wrong, by key, with what was found and what was expected.
    pub fn parse(line: &str) -> Result<Self, String> {
        let object: Map<String, Value> = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let has = |key: &str| object.contains_key(key);
        match (has("messages"), has("prompt") || has("completion"), has("text")) {
            (true, false, false) => conversation(&object),
            (false, true, false) => {
                let (prompt, completion) = (text(&object, "prompt")?, text(&object, "completion")?);
                let completion = learnt(completion, "completion")?;
                Ok(Self::Completion { prompt, completion })
            }
            (false, false, true) => Ok(Self::Text(learnt(text(&object, "text")?, "text")?)),
            _ => {
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                Err(format!("a row with the keys {keys:?}; expected exactly one of {FORMS}"))
            }
        }
    }

    /// Texts that a vocabulary is trained on, and whether each is an answer.
    pub fn texts(self) -> Vec<Message> {
        let message = |role: &str, content: String| Message { role: role.to_owned(), content };
        match self {
            Self::Chat(messages) => messages,
            Self::Completion { prompt, completion } => {
                vec![message("user", prompt), message("user", completion)]
            }
            Self::Text(text) => vec![message("user", text)],
        }
    }
}

fn conversation(object: &Map<String, Value>) -> Result<Row, String> {
    let Some(list) = object["messages"].as_array() else {
        return Err(format!("messages is {}, expected a list of messages", kind(&object["messages"])));
    };
    let messages: Vec<Message> = list
        .iter()
        .enumerate()
        .map(|(at, message)| {
            let field = |name: &str| {
                let value = message.get(name).unwrap_or(&Value::Null);
                let text = value.as_str().map(str::to_owned);
                text.ok_or_else(|| format!("messages[{at}].{name} is {}, expected a text", kind(value)))
            };
            Ok(Message { role: field("role")?, content: field("content")? })
        })
        .collect::<Result<_, String>>()?;
    let Some(last) = messages.last() else { return Err("messages is empty".into()) };
    let at = messages.len() - 1;
    if last.role != "assistant" {
        return Err(format!("messages[{at}].role is {:?}, expected \"assistant\"", last.role));
    }
    learnt(last.content.clone(), &format!("messages[{at}].content"))?;
    Ok(Row::Chat(messages))
}

fn text(object: &Map<String, Value>, key: &str) -> Result<String, String> {
    let value = object.get(key).unwrap_or(&Value::Null);
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{key} is {}, expected a text", kind(value)))
}

fn learnt(text: String, key: &str) -> Result<String, String> {
    if text.is_empty() { Err(format!("{key} is empty: there is nothing to learn")) } else { Ok(text) }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "missing or null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_and_what_is_wrong_with_others() {
        let row = |line: &str| Row::parse(line);
        let chat =
            r#"{"id":1,"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}"#;
        assert!(matches!(row(chat), Ok(Row::Chat(messages)) if messages.len() == 2));
        assert!(matches!(row(r#"{"prompt":"","completion":"y"}"#), Ok(Row::Completion { .. })));
        assert_eq!(row(r#"{"text":"abc"}"#), Ok(Row::Text("abc".into())));
        for (line, part) in [
            (r#"{"messages":[]}"#, "messages is empty"),
            (r#"{"messages":{}}"#, "an object, expected a list"),
            (
                r#"{"messages":[{"role":"user","content":"x"}]}"#,
                "messages[0].role is \"user\", expected \"assistant\"",
            ),
            (
                r#"{"messages":[{"role":"assistant","content":null}]}"#,
                "messages[0].content is missing or null",
            ),
            (r#"{"messages":[{"role":"assistant","content":""}]}"#, "messages[0].content is empty"),
            (r#"{"prompt":"x","completion":""}"#, "completion is empty"),
            (r#"{"prompt":"x"}"#, "completion is missing"),
            (r#"{"text":3}"#, "text is a number"),
            (r#"{"txt":"x"}"#, "[\"txt\"]; expected exactly one of"),
            (r#"{"text":"x","prompt":"y"}"#, "exactly one of"),
            ("[1]", "expected a map"),
            ("{", "EOF"),
        ] {
            let error = row(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
