//! Separates a model's thinking from its answer: detects a `<think>...</think>` block at the start
//! of the stream.

/// Kind of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Thinking.
    Reasoning,
    /// The answer.
    Answer,
}

/// A piece of what a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) kind: Kind,
    pub(super) text: String,
    /// Number of bytes that the model wrote before it, including tags and dropped white space.
    pub(super) at: usize,
}

/// Splits a stream of text.
#[derive(Debug, Clone)]
pub(super) struct Splitter {
    state: State,
    held: String,
    /// Number of bytes before `held`.
    at: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Only white space so far, and perhaps a part of `<think>`.
    Start,
    /// After `<think>`.
    Thinking,
    /// After `</think>`, before the answer's first character.
    Between,
    /// The rest.
    Answering,
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

impl Splitter {
    /// `thinking` means that the prompt has already opened the block.
    pub(super) fn new(thinking: bool) -> Self {
        Self::from(if thinking { State::Thinking } else { State::Start })
    }

    /// Treats everything as answer, for prompts not made by a template.
    pub(super) fn raw() -> Self {
        Self::from(State::Answering)
    }

    fn from(state: State) -> Self {
        Self { state, held: String::new(), at: 0 }
    }

    /// Whether the next text is thinking.
    pub(super) fn is_thinking(&self) -> bool {
        self.state == State::Thinking
    }

    /// Appends text, and returns the pieces that are certain by then.
    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        loop {
            match self.state {
                State::Start => {
                    let seen = self.held.trim_start();
                    if seen.starts_with(OPEN) {
                        self.take(self.held.len() - seen.len() + OPEN.len());
                        self.state = State::Thinking;
                    } else if OPEN.starts_with(seen) {
                        return pieces;
                    } else {
                        self.state = State::Answering;
                    }
                }
                State::Thinking => {
                    let Some(at) = self.held.find(CLOSE) else {
                        let told = self.held.len() - partial_suffix(&self.held, CLOSE);
                        pieces.extend(self.piece(Kind::Reasoning, told));
                        return pieces;
                    };
                    pieces.extend(self.piece(Kind::Reasoning, at));
                    self.take(CLOSE.len());
                    self.state = State::Between;
                }
                State::Between => {
                    self.take(self.held.len() - self.held.trim_start().len());
                    if self.held.is_empty() {
                        return pieces;
                    }
                    self.state = State::Answering;
                }
                State::Answering => {
                    pieces.extend(self.piece(Kind::Answer, self.held.len()));
                    return pieces;
                }
            }
        }
    }

    /// Ends the text, and returns what was held back because it might have become a tag.
    pub(super) fn finish(mut self) -> Option<Piece> {
        let kind = if self.state == State::Thinking { Kind::Reasoning } else { Kind::Answer };
        self.piece(kind, self.held.len())
    }

    fn piece(&mut self, kind: Kind, length: usize) -> Option<Piece> {
        let at = self.at;
        let text = self.take(length);
        (!text.is_empty()).then_some(Piece { kind, text, at })
    }

    fn take(&mut self, length: usize) -> String {
        self.at += length;
        self.held.drain(..length).collect()
    }
}

/// Length of the longest suffix of `text` that is a proper prefix of `tag`.
pub(super) fn partial_suffix(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&length| text.ends_with(&tag[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (reasoning, answer) of a text that arrives in pieces of `width` characters.
    fn split(text: &str, width: usize, thinking: bool) -> (String, String) {
        let mut splitter = Splitter::new(thinking);
        let characters: Vec<char> = text.chars().collect();
        let mut pieces = Vec::new();
        for chunk in characters.chunks(width) {
            pieces.extend(splitter.push(&chunk.iter().collect::<String>()));
        }
        pieces.extend(splitter.finish());
        pieces.into_iter().fold(Default::default(), |(reasoning, answer): (String, String), piece| {
            let place = text.get(piece.at..piece.at + piece.text.len());
            assert_eq!(place, Some(piece.text.as_str()), "a piece knows its place");
            match piece.kind {
                Kind::Reasoning => (reasoning + &piece.text, answer),
                Kind::Answer => (reasoning, answer + &piece.text),
            }
        })
    }

    #[test]
    fn thinking_never_reaches_the_answer_however_it_is_cut() {
        for width in 1..40 {
            let of = |text, thinking| split(text, width, thinking);
            assert_eq!(
                of("\n<think>a < b</thin></think>\n\n{\"x\": 1}", false),
                ("a < b</thin>".into(), "{\"x\": 1}".into())
            );
            assert_eq!(of("mm</think>yes", true), ("mm".into(), "yes".into()));
            assert_eq!(of("cut </thi", true), ("cut </thi".into(), String::new()));
            assert_eq!(of("a <think> b", false), (String::new(), "a <think> b".into()));
            assert_eq!(of("<thin", false), (String::new(), "<thin".into()));
            assert_eq!(of(" leading", false), (String::new(), " leading".into()));
        }
    }
}
