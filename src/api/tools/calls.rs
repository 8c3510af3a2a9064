//! Finds tool calls in a model's answer: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`
//! as Hermes and Qwen write them, or an answer that is only such an object. Anything that isn't a
//! call of an offered function stays text.
//!
//! A call ends where its JSON ends, so a tag within one of its strings is part of the string.

use serde::de::IgnoredAny;

use super::members::{ObjectEnd, compact, members};
use crate::api::reasoning::partial_suffix;
use crate::text::template::{CLOSE, OPEN};

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

/// Finds calls in an answer as it streams in.
#[derive(Debug, Clone)]
pub(in crate::api) struct Listener {
    names: Vec<String>,
    /// Most calls that are accepted. Everything after the last one is dropped.
    most: usize,
    /// Whether the answer is forced to be a call and nothing else.
    dictated: bool,
    state: State,
    held: String,
    /// Scan state of a call's object, and how far end tags in it have been searched.
    end: ObjectEnd,
    seen: usize,
    calls: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Only white space so far, or since the last call.
    Blank,
    /// After a `{` at the very start: the whole answer may be a call.
    Object,
    /// Within text.
    Text,
    /// After `<tool_call>`.
    Call,
    /// After the last accepted call.
    Over,
}

/// The text after `<tool_call>`: how far it extends, and whether it is a call.
enum Body {
    /// Not known yet.
    Open,
    /// An object that ends at the first position; its end tag ends at the second.
    Object(usize, usize),
    /// Something else, up to the end of its end tag.
    Other(usize),
}

impl Listener {
    /// For an answer that may contain calls of these functions.
    pub(super) fn new(names: Vec<String>, parallel: bool) -> Self {
        let most = if parallel { usize::MAX } else { 1 };
        Self {
            names,
            most,
            dictated: false,
            state: State::Blank,
            held: String::new(),
            end: ObjectEnd::default(),
            seen: 0,
            calls: 0,
        }
    }

    /// For an answer that is a call whose `<tool_call>` is already in the prompt.
    pub(super) fn opened(names: Vec<String>) -> Self {
        Self { state: State::Call, dictated: true, ..Self::new(names, false) }
    }

    /// Whether any further text would be dropped.
    pub(in crate::api) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Appends text, and returns everything that is certain by then.
    pub(in crate::api) fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        loop {
            match self.state {
                State::Blank => {
                    let rest = self.held.trim_start();
                    // Every tag starts with the empty text.
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
                    self.begin_call();
                }
                State::Call => {
                    let (body, next) = match self.body() {
                        Body::Open => return said,
                        Body::Object(end, next) => (Some(self.held[..end].to_owned()), next),
                        Body::Other(next) => (None, next),
                    };
                    let whole: String = self.held.drain(..next).collect();
                    match body.and_then(|body| self.call(&body)) {
                        Some(call) => said.push(call),
                        None => tell(&mut said, format!("{OPEN}{whole}")),
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

    /// Ends the answer and returns the held-back text. A call at the end needs no end tag.
    pub(in crate::api) fn finish(mut self) -> Vec<Said> {
        let held = std::mem::take(&mut self.held);
        let mut said = Vec::new();
        match self.state {
            State::Object => match self.call(&held) {
                Some(call) => said.push(call),
                None => tell(&mut said, held),
            },
            State::Call => {
                // A truncated end tag does no harm.
                let end = self.end.find(&held).filter(|&end| CLOSE.starts_with(held[end..].trim()));
                match self.call(&held[..end.unwrap_or(held.len())]) {
                    Some(call) => said.push(call),
                    None => tell(&mut said, format!("{OPEN}{held}")),
                }
            }
            State::Blank if self.calls > 0 && held.trim().is_empty() => {}
            State::Blank | State::Text => tell(&mut said, held),
            State::Over => {}
        }
        said
    }

    fn begin_call(&mut self) {
        self.state = State::Call;
        self.end = ObjectEnd::default();
        self.seen = 0;
    }

    /// Determines how far the text after `<tool_call>` extends.
    fn body(&mut self) -> Body {
        let first = self.held.trim_start();
        if first.is_empty() {
            return Body::Open;
        }
        let start = self.held.len() - first.len();
        if first.starts_with('{')
            && let Some(end) = self.end.find(&self.held)
        {
            let rest = self.held[end..].trim_start();
            if self.dictated || rest.starts_with(OPEN) {
                return Body::Object(end, end);
            }
            if rest.starts_with(CLOSE) {
                return Body::Object(end, self.held.len() - rest.len() + CLOSE.len());
            }
            if CLOSE.starts_with(rest) || OPEN.starts_with(rest) {
                return Body::Open;
            }
            self.seen = self.seen.max(end);
        }
        // After an incomplete object, an end tag is inside one of its strings, unless the text is
        // no JSON at all.
        while let Some(at) = self.held[self.seen..].find(CLOSE).map(|at| self.seen + at) {
            let so_far = serde_json::from_str::<IgnoredAny>(&self.held[start..at]);
            self.seen = at + CLOSE.len();
            if !so_far.is_err_and(|error| error.is_eof()) || !first_is_object(&self.held) {
                return Body::Other(self.seen);
            }
        }
        self.seen = self.seen.max(self.held.len() - partial_suffix(&self.held, CLOSE));
        Body::Open
    }

    fn call(&mut self, text: &str) -> Option<Said> {
        let fields = members(text)?;
        let field = |name: &str| fields.iter().rfind(|(key, _)| key == name).map(|&(_, value)| value);
        let name: String = serde_json::from_str(field("name")?).ok()?;
        if !self.names.contains(&name) {
            return None;
        }
        let none = || "{}".to_owned();
        let arguments = match field("arguments").or(field("parameters")) {
            Some(object) if object.starts_with('{') => compact(object),
            Some("null") => none(),
            Some(text) if text.starts_with('"') => {
                let text: String = serde_json::from_str(text).ok()?;
                if text.trim().is_empty() {
                    none()
                } else {
                    members(&text)?;
                    text
                }
            }
            None if fields.len() == 1 => none(),
            _ => return None,
        };
        self.calls += 1;
        Some(Said::Call { name, arguments })
    }
}

fn first_is_object(text: &str) -> bool {
    text.trim_start().starts_with('{')
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

    /// The result, which must not depend on how the text is split.
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
        let cut = r#"<tool_call>{"name":"g"}</tool_ca"#;
        assert_eq!(heard(&listener, cut), vec![call("g", "{}")]);
        let one = Listener::new(vec!["f".into()], false);
        assert_eq!(heard(&one, &format!("{f}{f} and more")), vec![found.clone()]);
        let opened = Listener::opened(vec!["f".into()]);
        assert_eq!(heard(&opened, r#"{"name":"f","arguments":{"b":1,"a":"x"}}"#), vec![found]);
    }

    #[test]
    fn a_tag_in_a_string_is_part_of_the_string() {
        let listener = Listener::new(vec!["f".into(), "g".into()], true);
        let arguments = [
            r#"{"t":"ends with </tool_call> in it"}"#,
            r#"{"t":"</tool_call>"}"#,
            r#"{"t":"<tool_call>{}</tool_call></tool_call>\n</think>"}"#,
            r#"{"t":"\"}</tool_call>","u":{"</tool_call>":["}",{"v":"\\"}]}}"#,
            r#"{"t":"</tool_call"}"#,
        ];
        for arguments in arguments {
            let body = format!(r#"{{"name":"f","arguments":{arguments}}}"#);
            let found = call("f", arguments);
            let tagged = format!("<tool_call>\n{body}\n</tool_call>");
            assert_eq!(heard(&listener, &tagged), vec![found.clone()]);
            assert_eq!(
                heard(&listener, &format!("a{tagged}{tagged}b")),
                vec![text("a"), found.clone(), found.clone(), text("b")]
            );
            assert_eq!(heard(&listener, &format!("<tool_call>{body}")), vec![found.clone()], "no end tag");
            assert_eq!(heard(&listener, &body), vec![found.clone()], "no tag at all");
            let dictated = Listener::opened(vec!["f".into()]);
            assert_eq!(heard(&dictated, &body), vec![found.clone()]);
            let mut dictated = dictated;
            assert_eq!(dictated.push(&body), vec![found], "told as soon as it is whole");
            assert!(dictated.is_over());
        }
    }

    #[test]
    fn what_is_no_json_ends_at_its_end_tag() {
        let listener = Listener::new(vec!["f".into(), "g".into()], true);
        let good = r#"<tool_call>{"name":"g"}</tool_call>"#;
        for bad in [
            r#"<tool_call>{"name":"f","arguments":{'a':1}}</tool_call>"#,
            "<tool_call>{\"name\":\"f\nx\"</tool_call>",
            r#"<tool_call>{"name":"f","arguments":{}} and more</tool_call>"#,
            "<tool_call>[]</tool_call>",
            "<tool_call></tool_call>",
        ] {
            assert_eq!(heard(&listener, &format!("{bad}{good}")), vec![text(bad), call("g", "{}")], "{bad}");
        }
        let without_end = r#"<tool_call>{"name":"g"}"#;
        assert_eq!(
            heard(&listener, &format!("{without_end}\n{good}")),
            vec![call("g", "{}"), call("g", "{}")]
        );
    }

    #[test]
    fn arguments_are_what_was_written() {
        let listener = Listener::new(vec!["f".into()], true);
        let of = |arguments: &str| heard(&listener, &format!(r#"{{"name": "f", "arguments": {arguments}}}"#));
        for (written, expected) in [
            (
                r#"{ "n" : 123456789012345678901234567890 , "m": 1e400 }"#,
                r#"{"n":123456789012345678901234567890,"m":1e400}"#,
            ),
            (r#"{"t": "a \u00e9 b"}"#, r#"{"t":"a \u00e9 b"}"#),
            ("null", "{}"),
            (r#""""#, "{}"),
        ] {
            assert_eq!(of(written), vec![call("f", expected)]);
        }
    }
}
