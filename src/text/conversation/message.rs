//! Messages of a conversation: parses them from JSON, and converts them to turns for a template.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::text::template::{Call, Turn};

/// One message, as written in the body.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    role: Role,
    #[serde(default)]
    content: Content,
    /// The thinking. This daemon calls it `reasoning_content`; other servers use other names.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    thinking: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    /// The older form of `tool_calls`.
    function_call: Option<Function>,
    tool_call_id: Option<String>,
    name: Option<String>,
    /// Other fields, which a template may know.
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// The speaker of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    /// Instructions.
    #[serde(alias = "developer")]
    System,
    User,
    Assistant,
    /// Result of a tool.
    #[serde(alias = "function")]
    Tool,
}

/// A call that the assistant made in an earlier turn.
#[derive(Debug, Deserialize)]
struct ToolCall {
    id: Option<String>,
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: Arguments,
}

/// JSON in a string, as in OpenAI's API, or an object. An empty text, `null` or an absent field
/// means no arguments.
#[derive(Debug)]
struct Arguments(Value);

impl Default for Arguments {
    fn default() -> Self {
        Self(Value::Object(Map::new()))
    }
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self::default()),
            Value::String(text) => Ok(Self(arguments(text))),
            object @ Value::Object(_) => Ok(Self(object)),
            other => {
                let found = crate::text::fields::kind(&other);
                Err(de::Error::custom(format!("found {found}, expected a string of JSON")))
            }
        }
    }
}

/// The arguments that a text stands for.
pub fn arguments(text: String) -> Value {
    let nothing = || Value::Object(Map::new());
    if text.trim().is_empty() {
        return nothing();
    }
    match serde_json::from_str(&text) {
        Ok(Value::Null) => nothing(),
        Ok(json) => json,
        // A model wrote this even though it isn't JSON, so it is shown as text.
        Err(_) => Value::String(text),
    }
}

/// Content: text, parts of text, or `null` (allowed in every message, because mnemonic sends it).
#[derive(Debug, Default)]
struct Content(String);

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: PartKind,
    text: Option<String>,
    refusal: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum PartKind {
    #[serde(rename = "text", alias = "input_text", alias = "output_text")]
    Text,
    #[serde(rename = "refusal")]
    Refusal,
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
                    let (name, said) = match part.kind {
                        PartKind::Text => ("text", part.text),
                        PartKind::Refusal => ("refusal", part.refusal),
                    };
                    text.push_str(&said.ok_or_else(|| de::Error::missing_field(name))?);
                }
                Ok(Content(text))
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

/// Marker that mnemonic appends to the last user message if it takes the model for a Qwen3.
const NO_THINK: &str = " /no_think";

/// The conversation as turns for a template.
pub(super) fn turns(messages: Vec<Message>) -> Vec<Turn> {
    messages.into_iter().map(Message::turn).collect()
}

/// Removes mnemonic's marker. A template that doesn't look for it would show it as part of the
/// question.
pub(super) fn without_marker(turns: &mut [Turn]) {
    if let Some(last) = turns.iter_mut().rfind(|turn| turn.role == "user")
        && let Some(rest) = last.content.strip_suffix(NO_THINK)
    {
        last.content.truncate(rest.len());
    }
}

impl Message {
    /// The message as a turn for a template.
    fn turn(self) -> Turn {
        let role = match self.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let old = self.function_call.map(|function| ToolCall { id: None, function });
        let calls = self.tool_calls.into_iter().flatten().chain(old).map(|call| Call {
            id: call.id.unwrap_or_default(),
            name: call.function.name,
            arguments: call.function.arguments.0,
        });
        let Content(mut content) = self.content;
        if let Some(refusal) = self.refusal.filter(|_| content.is_empty()) {
            content = refusal;
        }
        let mut thought = [self.reasoning_content, self.reasoning, self.thinking].into_iter().flatten();
        Turn {
            role,
            content,
            reasoning: thought.find(|text| !text.is_empty()),
            calls: calls.collect(),
            call_id: self.tool_call_id,
            name: self.name,
            more: self.more.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        let mut turns = turns.unwrap();
        without_marker(&mut turns);
        let contents: Vec<_> = turns.into_iter().map(|turn| turn.content).collect();
        assert_eq!(contents, ["first /no_think", "last", "said /no_think"]);
    }

    #[test]
    fn earlier_calls_keep_their_arguments_as_values() {
        let call = |arguments: Value| {
            let call = json!({"id": "1", "type": "function", "function": {"name": "recall", "arguments": arguments}});
            parse(json!([{"role": "assistant", "content": null, "tool_calls": [call]}]))
                .map(|turns| turns[0].calls[0].arguments.clone())
        };
        assert_eq!(call(json!("{\"q\":\"x\"}")), Ok(json!({"q": "x"})));
        assert_eq!(call(json!({"q": "x"})), Ok(json!({"q": "x"})));
        assert_eq!(call(json!("no JSON")), Ok(json!("no JSON")));
        for nothing in [json!(""), json!(" "), json!("null"), json!(null), json!("{}")] {
            assert_eq!(call(nothing.clone()), Ok(json!({})), "{nothing}");
        }
        let wrong = call(json!(5)).unwrap_err();
        assert!(wrong.starts_with("[0].tool_calls[0].function.arguments: found a number"), "{wrong}");
    }

    #[test]
    fn no_field_is_lost() {
        let turns = parse(json!([
            {"role": "user", "content": "a", "name": "bob", "mood": {"x": 1}, "audio": null},
            {"role": "assistant", "content": "b", "reasoning_content": "r1", "thinking": "r2"},
            {"role": "assistant", "content": "", "reasoning": "r3", "refusal": "no"},
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{\"x\": 1}"}},
            {"role": "function", "name": "f", "content": [{"type": "refusal", "refusal": "c"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "g"}}]},
        ]));
        let call = |name: &str, arguments: Value| Call { id: String::new(), name: name.into(), arguments };
        let expected = [
            Turn {
                name: Some("bob".into()),
                more: Map::from_iter([("mood".to_owned(), json!({"x": 1}))]),
                ..Turn::new("user", "a")
            },
            Turn { reasoning: Some("r1".into()), ..Turn::new("assistant", "b") },
            Turn { reasoning: Some("r3".into()), ..Turn::new("assistant", "no") },
            Turn { calls: vec![call("f", json!({"x": 1}))], ..Turn::new("assistant", "") },
            Turn { name: Some("f".into()), ..Turn::new("tool", "c") },
            Turn { calls: vec![call("g", json!({}))], ..Turn::new("assistant", "") },
        ];
        assert_eq!(turns.unwrap(), expected);
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
