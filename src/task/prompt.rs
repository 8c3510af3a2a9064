//! The prompt of the encoding task: as in mnemonic, a fixed head that is the same for every event,
//! then the event.

use serde_json::{Value, json};

use super::event::Event;
use super::schema::{SCHEMA_NAME, encoding_schema};
use crate::text::tokenizer::Message;

/// The wording of a prompt: everything but the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wording {
    /// The system message.
    pub system: String,
    /// The fixed head of the user message.
    pub head: String,
    /// How the event is framed.
    pub frame: Frame,
}

/// How source, type and content of the event are labelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// `SOURCE: ..`, `TYPE: ..`, `CONTENT:` on separate lines, as the client writes them.
    Labelled,
    /// `[source/type]` on a separate line.
    Bracketed,
    /// `Source: .. Type: ..` on one line, then `Event:`.
    Inline,
}

/// The standard system message.
const SYSTEM: &str = "You turn events into structured memories and answer with JSON only.";

/// The standard head. It is short because every event repeats it, in training too.
const HEAD: &str = "\
Encode the event below as one JSON object.
Keep each name, number, path and version exactly as written. Say nothing that the event does not say. Keep short events short.
Fields: gist (60 characters at most), summary, content, narrative, concepts, \
structured_concepts {topics, entities, actions, causality}, significance (routine|notable|important|critical), \
emotional_tone (neutral|satisfying|frustrating|exciting|concerning), outcome (success|failure|ongoing|unknown), salience (0 to 1).";

impl Wording {
    /// The wording that `bespoke encode` and `bespoke eval run` send, and the most frequent one in
    /// the training of the shipped model.
    pub fn standard() -> Self {
        Self { system: SYSTEM.to_owned(), head: HEAD.to_owned(), frame: Frame::Labelled }
    }
}

/// The system and user messages that ask for the encoding of `event`.
pub fn messages(event: &Event, wording: &Wording) -> Vec<Message> {
    let Event { source, kind, content } = event;
    let framed = match wording.frame {
        Frame::Labelled => format!("SOURCE: {source}\nTYPE: {kind}\nCONTENT:\n{content}"),
        Frame::Bracketed => format!("[{source}/{kind}]\n{content}"),
        Frame::Inline => format!("Source: {source} Type: {kind}\nEvent:\n{content}"),
    };
    let user = if wording.head.is_empty() { framed } else { format!("{}\n\n{framed}", wording.head) };
    let message = |role: &str, content: String| Message { role: role.to_owned(), content };
    vec![message("system", wording.system.clone()), message("user", user)]
}

/// The body of a chat request for the encoding of `event`, as clients of the daemon send it.
pub fn request(event: &Event, wording: &Wording) -> Value {
    json!({
        "messages": messages(event, wording),
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": SCHEMA_NAME, "strict": true, "schema": encoding_schema()},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_ends_the_prompt_in_the_daemons_form() {
        let event = Event::new("git", "commit", "Fix it\n\n* now");
        let asked = messages(&event, &Wording::standard());
        assert_eq!(asked[0].role, "system");
        assert!(asked[1].content.ends_with("\n\nSOURCE: git\nTYPE: commit\nCONTENT:\nFix it\n\n* now"));
        let words = |text: &str| text.split_whitespace().count();
        assert!(words(&asked[0].content) + words(HEAD) <= 120);
    }
}
