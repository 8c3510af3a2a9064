//! Keeps a model's thinking out of its answer: a `<think>...</think>` block at the start is told apart as it streams.

/// A piece of what a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Thinking.
    Reasoning(String),
    /// The answer.
    Answer(String),
}

/// Splits a stream of text.
#[derive(Debug)]
pub(super) struct Splitter {
    state: State,
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space and perhaps a part of `<think>` so far.
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
    /// `thinking`: the prompt has opened the block already.
    pub(super) fn new(thinking: bool) -> Self {
        Self { state: if thinking { State::Thinking } else { State::Start }, held: String::new() }
    }

    /// More text; what of it can be told.
    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        loop {
            match self.state {
                State::Start => {
                    let seen = self.held.trim_start();
                    if let Some(rest) = seen.strip_prefix(OPEN) {
                        self.held = rest.to_owned();
                        self.state = State::Thinking;
                    } else if OPEN.starts_with(seen) {
                        return pieces;
                    } else {
                        self.state = State::Answering;
                    }
                }
                State::Thinking => {
                    let Some(at) = self.held.find(CLOSE) else {
                        let keep = partial_suffix(&self.held, CLOSE);
                        let told: String = self.held.drain(..self.held.len() - keep).collect();
                        add(&mut pieces, Piece::Reasoning, told);
                        return pieces;
                    };
                    let rest = self.held.split_off(at);
                    add(
                        &mut pieces,
                        Piece::Reasoning,
                        std::mem::replace(&mut self.held, rest[CLOSE.len()..].to_owned()),
                    );
                    self.state = State::Between;
                }
                State::Between => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return pieces;
                    }
                    self.state = State::Answering;
                }
                State::Answering => {
                    add(&mut pieces, Piece::Answer, std::mem::take(&mut self.held));
                    return pieces;
                }
            }
        }
    }

    /// The end of the text: what was held back because it might have become a tag.
    pub(super) fn finish(self) -> Option<Piece> {
        let wrap = if self.state == State::Thinking { Piece::Reasoning } else { Piece::Answer };
        Some(self.held).filter(|held| !held.is_empty()).map(wrap)
    }
}

fn add(pieces: &mut Vec<Piece>, wrap: fn(String) -> Piece, text: String) {
    if !text.is_empty() {
        pieces.push(wrap(text));
    }
}

/// Length of the longest end of `text` that is a beginning of `tag`.
fn partial_suffix(text: &str, tag: &str) -> usize {
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
        pieces.into_iter().fold(
            Default::default(),
            |(reasoning, answer): (String, String), piece| match piece {
                Piece::Reasoning(text) => (reasoning + &text, answer),
                Piece::Answer(text) => (reasoning, answer + &text),
            },
        )
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
