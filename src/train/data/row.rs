//! A row of training data, in any of its three forms.

use serde_json::{Map, Value};

use crate::text::tokenizer::Message;
use crate::text::{ChatTemplate, Dialogue};

/// The content of a row, and which part of it is learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A conversation; its last message, the assistant's, is learnt.
    Chat(Vec<Message>),
    /// A conversation with tools, calls, thinking or names.
    Dialogue(Box<Dialogue>),
    /// A text with its completion; only the completion is learnt.
    Completion {
        /// The text that is read.
        prompt: String,
        /// The text that is learnt.
        completion: String,
    },
    /// A text whose every token is learnt.
    Text(String),
}

const FORMS: &str = "\"messages\", or \"prompt\" and \"completion\", or \"text\"";

impl Row {
    /// Reads a line of JSONL: an object with [`FORMS`]; other keys are ignored.
    ///
    /// # Errors
    /// What is wrong with which key, what was found and what was expected.
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

    /// The texts of the row, with their roles, to train a vocabulary on.
    pub fn texts(self) -> Vec<Message> {
        let message = |role: &str, content: String| Message { role: role.to_owned(), content };
        match self {
            Self::Chat(messages) => messages,
            Self::Dialogue(dialogue) => in_text(&dialogue),
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
    let at = list.len().checked_sub(1).ok_or("messages is empty")?;
    let last = &list[at];
    let last_role = last.get("role").and_then(Value::as_str).unwrap_or_default();
    if last_role != "assistant" && last.get("role").is_some_and(Value::is_string) {
        return Err(format!("messages[{at}].role is {last_role:?}, expected \"assistant\""));
    }
    if MORE.iter().any(|key| object.get(*key).is_some_and(|value| !value.is_null()))
        || list.iter().any(|message| !is_text(message))
    {
        return dialogue(object, at);
    }
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
    learnt(messages[at].content.clone(), &format!("messages[{at}].content"))?;
    Ok(Row::Chat(messages))
}

/// Fields of a row that affect the prompt, other than its messages.
const MORE: [&str; 3] = ["tools", "chat_template_kwargs", "reasoning_effort"];

/// Whether a message is only a role and a text, perhaps a malformed one.
fn is_text(message: &Value) -> bool {
    message.as_object().is_none_or(|message| {
        message.iter().all(|(key, value)| match key.as_str() {
            "role" => !matches!(value.as_str(), Some("developer" | "function")),
            "content" => !value.is_array() && !value.is_null(),
            _ => value.is_null(),
        }) && message.contains_key("content")
    })
}

/// Parses a conversation with more than texts, whose last message is number `at`.
fn dialogue(object: &Map<String, Value>, at: usize) -> Result<Row, String> {
    let dialogue = Dialogue::parse(object.clone())?;
    let last = &dialogue.turns[at];
    if last.content.is_empty() && last.calls.is_empty() {
        let content = object["messages"][at].get("content").unwrap_or(&Value::Null);
        return Err(match content {
            Value::Null => {
                format!("messages[{at}].content is {}, expected a text or tool_calls", kind(content))
            }
            _ => format!("messages[{at}].content is empty: there is nothing to learn"),
        });
    }
    Ok(Row::Dialogue(Box::new(dialogue)))
}

/// A conversation reduced to texts.
pub(super) fn in_text(dialogue: &Dialogue) -> Vec<Message> {
    let turns = ChatTemplate::plain_text().in_text(&dialogue.turns, &dialogue.tools).unwrap_or_default();
    let message = |turn: crate::text::Turn| Message { role: turn.role.to_owned(), content: turn.content };
    turns.into_iter().map(message).collect()
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
        let call = r#"{"messages":[{"role":"user","content":"x","name":"me"},{"role":"assistant","content":null,
            "tool_calls":[{"function":{"name":"f","arguments":""}}]}],"tools":[{"type":"function","function":{"name":"f"}}]}"#;
        let Ok(Row::Dialogue(dialogue)) = row(call) else { panic!("{:?}", row(call)) };
        assert_eq!((dialogue.turns[0].name.as_deref(), dialogue.tools.len()), (Some("me"), 1));
        assert_eq!(dialogue.turns[1].calls[0].arguments, serde_json::json!({}));
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
            (r#"{"messages":[{"role":"assistant","tool_calls":[]}]}"#, "messages[0].content is missing"),
            (r#"{"messages":[{"role":"assistant","tool_calls":[{"id":1}]}]}"#, "messages[0].tool_calls[0]"),
            (
                r#"{"messages":[{"role":"assistant","content":"y"}],"tools":[{"type":"x"}]}"#,
                "tools[0].type: unknown variant `x`",
            ),
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
