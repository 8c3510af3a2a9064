//! Messages of a conversation: as they come over the wire, and as a template takes them.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::api::template::Turn;

/// One message, as written.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    role: Role,
    #[serde(default)]
    content: Content,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    /// Instructions.
    #[serde(alias = "developer")]
    System,
    User,
    Assistant,
    /// What a tool answered.
    #[serde(alias = "function")]
    Tool,
}

/// A call that the assistant made in an earlier turn. It is shown to the model as the JSON that it was.
#[derive(Debug, Deserialize, Serialize)]
struct ToolCall {
    function: Function,
}

#[derive(Debug, Deserialize, Serialize)]
struct Function {
    name: String,
    /// JSON, as a string.
    arguments: String,
}

/// A content: text, parts of text, or `null` (allowed in every message: mnemonic sends it).
#[derive(Debug, Default)]
struct Content(String);

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    _kind: PartKind,
    text: String,
}

#[derive(Debug, Deserialize)]
enum PartKind {
    #[serde(rename = "text", alias = "input_text")]
    Text,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, null, or an array of text parts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content(text.to_owned()))
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Content, E> {
                Ok(Content(text))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Content, E> {
                Ok(Content::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut text = String::new();
                while let Some(part) = parts.next_element::<Part>()? {
                    text.push_str(&part.text);
                }
                Ok(Content(text))
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

/// What mnemonic appends to the last user message of a model that it takes for a Qwen3.
const NO_THINK: &str = " /no_think";

/// The conversation as a template takes it.
pub(super) fn turns(messages: Vec<Message>) -> Vec<Turn> {
    let last_user = messages.iter().rposition(|message| message.role == Role::User);
    messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| {
            let mut turn = message.turn();
            if Some(index) == last_user
                && let Some(rest) = turn.content.strip_suffix(NO_THINK)
            {
                turn.content.truncate(rest.len());
            }
            turn
        })
        .collect()
}

impl Message {
    fn turn(self) -> Turn {
        let role = match self.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let mut content = self.content.0;
        for call in self.tool_calls.into_iter().flatten() {
            let call = serde_json::to_string(&call.function).expect("two strings are always JSON");
            let gap = if content.is_empty() { "" } else { "\n" };
            content = content + gap + &call;
        }
        Turn { role, content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(messages: Value) -> Result<Vec<Turn>, String> {
        let messages: Result<Vec<Message>, _> = serde_path_to_error::deserialize(messages);
        messages.map(turns).map_err(|error| format!("{}: {}", error.path(), error.inner()))
    }

    #[test]
    fn content_may_be_text_null_absent_or_parts() {
        let turns = parse(json!([
            {"role": "developer", "content": "s"},
            {"role": "user", "content": null},
            {"role": "assistant"},
            {"role": "tool", "tool_call_id": "1", "content": null},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]));
        let turns: Vec<_> = turns.unwrap().into_iter().map(|turn| (turn.role, turn.content)).collect();
        let expected = [("system", "s"), ("user", ""), ("assistant", ""), ("tool", ""), ("user", "ab")];
        assert_eq!(turns, expected.map(|(role, content)| (role, content.to_owned())));
    }

    #[test]
    fn only_the_last_user_message_loses_its_marker() {
        let turns = parse(json!([
            {"role": "user", "content": "first /no_think"},
            {"role": "user", "content": "last /no_think"},
            {"role": "assistant", "content": "said /no_think"},
        ]));
        let contents: Vec<_> = turns.unwrap().into_iter().map(|turn| turn.content).collect();
        assert_eq!(contents, ["first /no_think", "last", "said /no_think"]);
    }

    #[test]
    fn earlier_tool_calls_are_shown_as_json() {
        let turns = parse(json!([{"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "recall", "arguments": "{\"q\":\"x\"}"}}
        ]}]));
        assert_eq!(turns.unwrap()[0].content, r#"{"name":"recall","arguments":"{\"q\":\"x\"}"}"#);
    }

    #[test]
    fn mistakes_name_their_place() {
        let role = parse(json!([{"role": "user"}, {"role": "robot"}])).unwrap_err();
        assert!(role.starts_with("[1].role: unknown variant `robot`"), "{role}");
        let part =
            parse(json!([{"role": "user", "content": [{"type": "image_url", "text": ""}]}])).unwrap_err();
        assert!(part.starts_with("[0].content[0].type: unknown variant `image_url`"), "{part}");
        let number = parse(json!([{"role": "user", "content": 5}])).unwrap_err();
        assert!(number.starts_with("[0].content: "), "{number}");
    }
}
