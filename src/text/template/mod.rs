//! Chat templates: render a conversation as a prompt in which only the template can write control
//! tokens.
//!
//! A template is rendered twice: plainly, and with its own text in [ink]. Both renderings see the
//! contents unchanged, so conditions, slices and replacements work as in `transformers`, and the
//! text of the prompt is that of the plain rendering. Text that is in ink in the other rendering is
//! the template's own ([`Segment::markup`]). Everything else came from a client
//! ([`Segment::plain`]): contents, names, keys, ids, descriptions, and all that is shown as JSON. A
//! person who writes `<|assistant|>` has written text and nothing else.
//!
//! [`Segment::markup`]: crate::text::Segment::markup
//! [`Segment::plain`]: crate::text::Segment::plain

mod environment;
mod marked;
mod python;
mod scan;
mod sentinel;
mod source;
mod to_json;
mod told;
mod turn;

use std::time::SystemTime;

use minijinja::Environment;
use serde_json::{Map, Value};

pub use self::to_json::spaced;
pub use self::told::{CLOSE, OPEN};
pub use self::turn::{Call, Turn};

use self::environment::{check_names, environment, render};
use self::marked::Inked;
use self::scan::without_generation;
use self::sentinel::Guard;
use self::source::Source;
use self::told::told;
use self::turn::message;
use crate::text::{Prompt, Segment};

/// Why a template renders no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template isn't Jinja, or uses an unknown filter or test.
    #[error("the chat template can't be parsed: {0}")]
    Syntax(String),
    /// The template fails with every conversation.
    #[error("the chat template fails: {0}")]
    Broken(String),
    /// The template refuses this conversation, or fails on it.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    kind: Kind,
    clock: fn() -> SystemTime,
}

#[derive(Debug)]
enum Kind {
    Jinja(Box<Jinja>),
    PlainText,
}

#[derive(Debug)]
struct Jinja {
    source: String,
    plain: Environment<'static>,
    inked: Inked,
    special: Special,
    knows_tools: bool,
    /// Whether the template shows contents only if they come as lists of parts.
    typed: bool,
}

/// Special tokens of the model that templates may use.
#[derive(Debug, Clone)]
struct Special {
    bos_token: String,
    eos_token: String,
}

/// The most common chat format, for models that know its tokens but have no template.
const CHAT_ML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                       {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

impl ChatTemplate {
    /// Compiles a template as `transformers` does: block tags remove their line, and Python's
    /// string methods work.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        let read = without_generation(source);
        let plain = environment(&read)?;
        let taken = Source::new(&read);
        if let Some(taken) = &taken {
            check_names(&plain, &taken.uses)?;
        }
        let template = plain.get_template("chat").map_err(|e| TemplateError::Syntax(e.to_string()))?;
        let knows_tools = template.undeclared_variables(false).contains("tools");
        let special = Special { bos_token: bos_token.to_owned(), eos_token: eos_token.to_owned() };
        let mut jinja = Jinja {
            source: source.to_owned(),
            inked: Inked::new(taken),
            plain,
            special,
            knows_tools,
            typed: false,
        };
        jinja.typed = !jinja.shows_contents(false) && jinja.shows_contents(true);
        Ok(Self { kind: Kind::Jinja(Box::new(jinja)), clock: SystemTime::now })
    }

    /// Checks that a template can be used, before its model is loaded.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn check(source: &str) -> Result<(), TemplateError> {
        Self::new(source, "", "").map(|_| ())
    }

    /// `<|im_start|>role ... <|im_end|>`.
    pub fn chat_ml() -> Self {
        Self::new(CHAT_ML, "", "").expect("a constant that a test renders")
    }

    /// For models without chat tokens: the contents, separated by blank lines.
    pub fn plain_text() -> Self {
        Self { kind: Kind::PlainText, clock: SystemTime::now }
    }

    /// Replaces the clock of the template's dates.
    #[must_use]
    pub fn with_clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// The time by the template's clock.
    pub(super) fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// The conversation with tools and calls written as text, if the template doesn't render them
    /// itself.
    pub fn in_text(&self, turns: &[Turn], tools: &[Value]) -> Option<Vec<Turn>> {
        let knows_tools = matches!(&self.kind, Kind::Jinja(jinja) if jinja.knows_tools);
        (!knows_tools).then(|| told(turns, tools))
    }

    /// The template's text; empty for plain text.
    pub fn source(&self) -> &str {
        match &self.kind {
            Kind::Jinja(jinja) => &jinja.source,
            Kind::PlainText => "",
        }
    }

    /// Renders the prompt of a conversation, up to where the assistant's answer begins. If the
    /// template doesn't know tools, tools and calls are written into the messages' texts.
    ///
    /// `parameters` are the request's `chat_template_kwargs`. They can't replace the variables that
    /// every template gets. Thinking is off unless they turn it on.
    ///
    /// # Errors
    /// [`TemplateError::Refused`], [`TemplateError::Broken`].
    pub fn render(
        &self,
        turns: &[Turn],
        tools: &[Value],
        parameters: &Map<String, Value>,
    ) -> Result<Prompt, TemplateError> {
        self.rendered(turns, tools, parameters, true)
    }

    /// Renders a conversation whose last turn is the assistant's, including the end of that turn.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_whole(
        &self,
        turns: &[Turn],
        tools: &[Value],
        parameters: &Map<String, Value>,
    ) -> Result<Prompt, TemplateError> {
        self.rendered(turns, tools, parameters, false)
    }

    fn rendered(
        &self,
        turns: &[Turn],
        tools: &[Value],
        parameters: &Map<String, Value>,
        answer: bool,
    ) -> Result<Prompt, TemplateError> {
        let in_text = self.in_text(turns, tools);
        let (turns, tools) = match &in_text {
            Some(turns) => (turns.as_slice(), &[][..]),
            None => (turns, tools),
        };
        match &self.kind {
            Kind::Jinja(jinja) => jinja.prompt(turns, tools, parameters, answer, self.now()),
            Kind::PlainText => {
                let texts: Vec<&str> =
                    turns.iter().map(|turn| turn.content.as_str()).filter(|text| !text.is_empty()).collect();
                let end = if answer { "\n\n" } else { "" };
                Ok(vec![Segment::plain(texts.join("\n\n") + end)])
            }
        }
    }
}

impl Jinja {
    fn prompt(
        &self,
        turns: &[Turn],
        tools: &[Value],
        parameters: &Map<String, Value>,
        answer: bool,
        now: SystemTime,
    ) -> Result<Prompt, TemplateError> {
        let shown = Self::variables(turns, tools, parameters, answer, self.typed);
        let guard = Guard::over(&shown, &self.source);
        let covered = match &guard {
            Some(guard) => guard.cover(shown),
            None => shown,
        };
        let uncovering = guard.clone().unwrap_or_default();
        let text = render(&self.plain, &covered, &self.special, &uncovering, now)?;
        let inked = guard.and_then(|_| self.inked.render(&text, &covered, &self.special, &uncovering, now));
        Ok(match inked {
            Some(inked) => uncovering.cut(&inked),
            None => vec![Segment::plain(uncovering.uncover(&text))],
        })
    }

    fn variables(
        turns: &[Turn],
        tools: &[Value],
        parameters: &Map<String, Value>,
        answer: bool,
        typed: bool,
    ) -> Value {
        let mut all = Map::new();
        all.insert("enable_thinking".to_owned(), false.into());
        all.extend(parameters.clone());
        all.shift_remove("tools");
        if !tools.is_empty() {
            all.insert("tools".to_owned(), tools.into());
        }
        let messages: Vec<Value> = turns.iter().map(|turn| message(turn, typed)).collect();
        all.insert("messages".to_owned(), messages.into());
        all.insert("add_generation_prompt".to_owned(), answer.into());
        for special in ["bos_token", "eos_token"] {
            all.shift_remove(special);
        }
        Value::Object(all)
    }

    /// Whether the prompt contains what a user says.
    fn shows_contents(&self, typed: bool) -> bool {
        const PROBE: &str = "zq7probe";
        let turns = [Turn::new("user", PROBE)];
        let shown = Self::variables(&turns, &[], &Map::new(), true, typed);
        let rendered = render(&self.plain, &shown, &self.special, &Guard::default(), SystemTime::UNIX_EPOCH);
        rendered.is_ok_and(|text| text.contains(PROBE))
    }
}

#[cfg(test)]
mod tests;
