//! Turns of a conversation, and the form in which a template gets them.

use serde_json::{Map, Value, json};

/// One message, ready for a template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Turn {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: &'static str,
    /// The text; empty if there is none.
    pub content: String,
    /// What the assistant thought before this content.
    pub reasoning: Option<String>,
    /// Calls that the assistant made.
    pub calls: Vec<Call>,
    /// Id of the call that a tool answers.
    pub call_id: Option<String>,
    /// Name of the answering tool, or of the speaker.
    pub name: Option<String>,
    /// Further members of the message; a template may know them.
    pub more: Map<String, Value>,
}

impl Turn {
    /// A turn of text.
    pub fn new(role: &'static str, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), ..Self::default() }
    }
}

/// A function call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its id in the API.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// The arguments, usually an object.
    pub arguments: Value,
}

/// A turn in the form that templates expect. Empty members are left out, because templates test
/// whether they are defined. `typed` gives the content as a list of parts, for templates that know
/// nothing else.
pub(super) fn message(turn: &Turn, typed: bool) -> Value {
    let content = if typed && !turn.content.is_empty() {
        json!([{"type": "text", "text": turn.content}])
    } else {
        json!(turn.content)
    };
    let mut message = turn.more.clone();
    message.insert("role".to_owned(), turn.role.into());
    message.insert("content".to_owned(), content);
    if let Some(reasoning) = &turn.reasoning {
        // `transformers` sets both names too.
        message.insert("reasoning_content".to_owned(), reasoning.clone().into());
        message.entry("thinking").or_insert_with(|| reasoning.clone().into());
    }
    if !turn.calls.is_empty() {
        let call = |call: &Call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        };
        message.insert("tool_calls".to_owned(), turn.calls.iter().map(call).collect());
    }
    if let Some(call_id) = &turn.call_id {
        message.insert("tool_call_id".to_owned(), call_id.clone().into());
    }
    if let Some(name) = &turn.name {
        message.insert("name".to_owned(), name.clone().into());
    }
    Value::Object(message)
}
