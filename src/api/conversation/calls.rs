//! Finds calls in what a model says: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Hermes and Qwen write
//! them, or an answer that is such an object and nothing else. What isn't a call of an offered function stays text.

use serde_json::Value;

use crate::api::reasoning::partial_suffix;

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum Said {
    Text(String),
    Call {
        name: String,
        /// JSON of an object.
        arguments: String,
    },
}

/// Reads an answer as it comes.
#[derive(Debug, Clone)]
pub(in crate::api) struct Listener {
    names: Vec<String>,
    /// Calls that are taken; what follows the last one is dropped.
    most: usize,
    state: State,
    held: String,
    calls: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far, or since the last call.
    Blank,
    /// From a `{` at the very start: the whole answer may be a call.
    Object,
    /// Within text.
    Text,
    /// Behind `<tool_call>`.
    Call,
    /// Behind the last call that is taken.
    Over,
}

impl Listener {
    /// For an answer that may have calls of these functions.
    pub(super) fn new(names: Vec<String>, parallel: bool) -> Self {
        let most = if parallel { usize::MAX } else { 1 };
        Self { names, most, state: State::Blank, held: String::new(), calls: 0 }
    }

    /// For an answer that is a call, whose `<tool_call>` the prompt has.
    pub(super) fn opened(names: Vec<String>) -> Self {
        Self { state: State::Call, ..Self::new(names, false) }
    }

    /// More text; what of it can be told.
    pub(in crate::api) fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        loop {
            match self.state {
                State::Blank => {
                    let rest = self.held.trim_start();
                    // The empty text begins every tag.
                    if OPEN.starts_with(rest) && rest != OPEN {
                        return said;
                    }
                    let object = self.calls == 0 && rest.starts_with('{');
                    if self.calls > 0 || rest.starts_with(OPEN) {
                        self.held = rest.to_owned();
                    }
                    self.state = if object { State::Object } else { State::Text };
                }
                State::Object => return said,
                State::Text => {
                    let Some(at) = self.held.find(OPEN) else {
                        let told = self.held.len() - partial_suffix(&self.held, OPEN);
                        tell(&mut said, self.held.drain(..told).collect());
                        return said;
                    };
                    let before = self.held[..at].to_owned();
                    self.held.drain(..at + OPEN.len());
                    tell(&mut said, before);
                    self.state = State::Call;
                }
                State::Call => {
                    let Some(at) = self.held.find(CLOSE) else { return said };
                    let body = self.held[..at].to_owned();
                    self.held.drain(..at + CLOSE.len());
                    let call = self.call(&body);
                    match call {
                        Some(call) => said.push(call),
                        None => tell(&mut said, format!("{OPEN}{body}{CLOSE}")),
                    }
                    self.state = if self.calls >= self.most { State::Over } else { State::Blank };
                }
                State::Over => {
                    self.held.clear();
                    return said;
                }
            }
        }
    }

    /// The end of the answer: what was held back. A call needs no end tag there.
    pub(in crate::api) fn finish(mut self) -> Vec<Said> {
        let held = std::mem::take(&mut self.held);
        let mut said = Vec::new();
        match self.state {
            State::Object => match self.call(&held) {
                Some(call) => said.push(call),
                None => tell(&mut said, held),
            },
            State::Call => match self.call(&held) {
                Some(call) => said.push(call),
                None => tell(&mut said, format!("{OPEN}{held}")),
            },
            State::Blank if self.calls > 0 && held.trim().is_empty() => {}
            State::Blank | State::Text => tell(&mut said, held),
            State::Over => {}
        }
        said
    }

    fn call(&mut self, text: &str) -> Option<Said> {
        let call: Value = serde_json::from_str(text.trim()).ok()?;
        let fields = call.as_object()?;
        let name =
            fields.get("name")?.as_str().filter(|name| self.names.iter().any(|known| known == name))?;
        let arguments = match fields.get("arguments").or(fields.get("parameters")) {
            Some(object @ Value::Object(_)) => object.to_string(),
            Some(Value::String(text)) if serde_json::from_str::<Value>(text).is_ok_and(|v| v.is_object()) => {
                text.clone()
            }
            None if fields.len() == 1 => "{}".to_owned(),
            _ => return None,
        };
        self.calls += 1;
        Some(Said::Call { name: name.to_owned(), arguments })
    }
}

fn tell(said: &mut Vec<Said>, text: String) {
    match said.last_mut() {
        _ if text.is_empty() => {}
        Some(Said::Text(last)) => last.push_str(&text),
        _ => said.push(Said::Text(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(said: Vec<Said>) -> Vec<Said> {
        let mut all = Vec::new();
        for one in said {
            match one {
                Said::Text(text) => tell(&mut all, text),
                call @ Said::Call { .. } => all.push(call),
            }
        }
        all
    }

    /// What is heard, however the text is cut.
    fn heard(listener: &Listener, text: &str) -> Vec<Said> {
        let characters: Vec<char> = text.chars().collect();
        let hear = |width: usize| {
            let mut listener = listener.clone();
            let mut said = Vec::new();
            for chunk in characters.chunks(width) {
                said.extend(listener.push(&chunk.iter().collect::<String>()));
            }
            said.extend(listener.finish());
            joined(said)
        };
        let whole = hear(characters.len().max(1));
        for width in 1..characters.len() {
            assert_eq!(hear(width), whole, "{text:?} in pieces of {width}");
        }
        whole
    }

    fn text(text: &str) -> Said {
        Said::Text(text.to_owned())
    }
    fn call(name: &str, arguments: &str) -> Said {
        Said::Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn calls_are_found_and_everything_else_is_text() {
        let listener = Listener::new(vec!["f".into(), "g".into()], true);
        let f = r#"<tool_call>
{"name": "f", "arguments": {"b": 1, "a": "x"}}
</tool_call>"#;
        let found = call("f", r#"{"b":1,"a":"x"}"#);
        for (said, expected) in [
            ("just text", vec![text("just text")]),
            ("", vec![]),
            ("  \n", vec![text("  \n")]),
            (f, vec![found.clone()]),
            (&format!("\n{f}\n"), vec![found.clone()]),
            (&format!("I look.\n{f}"), vec![text("I look.\n"), found.clone()]),
            (
                &format!("{f}\n<tool_call>{{\"name\":\"g\"}}</tool_call> done"),
                vec![found.clone(), call("g", "{}"), text("done")],
            ),
            (r#"{"name": "g", "parameters": {"q": 1}}"#, vec![call("g", r#"{"q":1}"#)]),
            (r#"<tool_call>{"name": "g", "arguments": "{\"q\":1}"}"#, vec![call("g", r#"{"q":1}"#)]),
            (r#"{"name": "h", "arguments": {}}"#, vec![text(r#"{"name": "h", "arguments": {}}"#)]),
            ("<tool_call>no JSON</tool_call>", vec![text("<tool_call>no JSON</tool_call>")]),
            ("a <tool_cal", vec![text("a <tool_cal")]),
            ("<tool_call>{\"name\": \"f\", ", vec![text("<tool_call>{\"name\": \"f\", ")]),
        ] {
            assert_eq!(heard(&listener, said), expected, "{said:?}");
        }
        let one = Listener::new(vec!["f".into()], false);
        assert_eq!(heard(&one, &format!("{f}{f} and more")), vec![found.clone()]);
        let opened = Listener::opened(vec!["f".into()]);
        assert_eq!(heard(&opened, r#"{"name":"f","arguments":{"b":1,"a":"x"}}"#), vec![found]);
    }
}
