//! An answer as a sequence of blocks (thinking, text and calls), for the APIs whose streams open,
//! extend and close each block.

use super::answer_stream::{Output, Part};
use super::answer_streams::Whole;
use super::tools::calls::{Listener, Said};
use crate::engine::{Closed, FinishReason};

/// A part of an answer, or a piece of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Block {
    Thinking(String),
    Text(String),
    Call {
        id: String,
        name: String,
        /// JSON of an object.
        arguments: String,
    },
}

/// A change of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Index of the block in the answer.
    pub(super) index: usize,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// An empty block begins.
    Open(Block),
    /// This is appended to it.
    More(Block),
    /// The block is complete.
    Close(Block),
}

/// The blocks of one answer as it streams in.
#[derive(Debug)]
pub(super) struct Blocks {
    listener: Option<Listener>,
    open: Option<Block>,
    /// Number of closed blocks.
    closed: usize,
    calls: bool,
    /// Whether any further text would be dropped.
    over: bool,
    /// Where the answer was kept from repeating itself.
    kept: Vec<Closed>,
}

impl Blocks {
    /// For an answer in which `listener` finds calls.
    pub(super) fn new(listener: Option<Listener>) -> Self {
        Self { listener, open: None, closed: 0, calls: false, over: false, kept: Vec::new() }
    }

    /// Whether there was a call.
    pub(super) fn has_calls(&self) -> bool {
        self.calls
    }

    /// Where the answer was kept from repeating itself, so far.
    pub(super) fn kept(&self) -> &[Closed] {
        &self.kept
    }

    /// Whether an answer that ended for this reason is incomplete.
    pub(super) fn is_cut(&self, reason: FinishReason) -> bool {
        reason == FinishReason::Length && !self.over
    }

    /// Steps that follow from an output. The end closes the open block; an answer has at least one
    /// block.
    pub(super) fn take(&mut self, output: Output) -> Vec<Step> {
        let mut steps = Vec::new();
        match output {
            Output::Started | Output::Read(_) => {}
            Output::Closed(closed) => self.kept.push(closed),
            Output::Reasoning(text) => self.say(Block::Thinking(text), &mut steps),
            Output::Answer(part) => match &mut self.listener {
                Some(listener) => {
                    let said = listener.push(&part.text);
                    self.hear(said, &mut steps);
                }
                None => self.say(Block::Text(part.text), &mut steps),
            },
            Output::End(..) => {
                let listener = self.listener.take();
                self.over = listener.as_ref().is_some_and(Listener::is_over);
                let held = listener.map_or_else(Vec::new, Listener::finish);
                self.hear(held, &mut steps);
                if self.closed == 0 && self.open.is_none() {
                    self.say(Block::Text(String::new()), &mut steps);
                }
                self.close(&mut steps);
            }
        }
        steps
    }

    /// The blocks of a whole answer.
    pub(super) fn of(&mut self, whole: Whole) -> Vec<Block> {
        let (reason, usage) = whole.ended();
        self.kept = whole.closed;
        let reasoning = Some(whole.reasoning).filter(|text| !text.is_empty()).map(Output::Reasoning);
        let text = Some(whole.text).filter(|text| !text.is_empty());
        let answer = text.map(|text| Output::Answer(Part { text, tokens: whole.tokens }));
        let outputs = reasoning.into_iter().chain(answer).chain([Output::End(reason, usage, None)]);
        let closed = |step: Step| match step.what {
            What::Close(block) => Some(block),
            _ => None,
        };
        outputs.flat_map(|output| self.take(output)).filter_map(closed).collect()
    }

    fn hear(&mut self, said: Vec<Said>, steps: &mut Vec<Step>) {
        for said in said {
            match said {
                Said::Text(text) => self.say(Block::Text(text), steps),
                Said::Call { name, arguments } => {
                    self.calls = true;
                    let id = format!("call_{:024x}", rand::random::<u128>() >> 32);
                    self.close(steps);
                    self.say(Block::Call { id, name, arguments }, steps);
                    self.close(steps);
                }
            }
        }
    }

    /// Appends to the open block if it is of the same kind, otherwise opens a new one.
    fn say(&mut self, more: Block, steps: &mut Vec<Step>) {
        let goes_on = match (&mut self.open, &more) {
            (Some(Block::Thinking(all)), Block::Thinking(text))
            | (Some(Block::Text(all)), Block::Text(text)) => {
                all.push_str(text);
                true
            }
            _ => false,
        };
        if !goes_on {
            self.close(steps);
            steps.push(Step { index: self.closed, what: What::Open(more.emptied()) });
            self.open = Some(more.clone());
        }
        if !more.is_empty() {
            steps.push(Step { index: self.closed, what: What::More(more) });
        }
    }

    fn close(&mut self, steps: &mut Vec<Step>) {
        if let Some(block) = self.open.take() {
            steps.push(Step { index: self.closed, what: What::Close(block) });
            self.closed += 1;
        }
    }
}

impl Block {
    fn emptied(&self) -> Self {
        match self {
            Self::Thinking(_) => Self::Thinking(String::new()),
            Self::Text(_) => Self::Text(String::new()),
            Self::Call { id, name, .. } => {
                Self::Call { id: id.clone(), name: name.clone(), arguments: String::new() }
            }
        }
    }

    fn is_empty(&self) -> bool {
        let (Self::Thinking(said) | Self::Text(said) | Self::Call { arguments: said, .. }) = self;
        said.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Usage;

    fn answer(text: &str) -> Output {
        Output::Answer(Part { text: text.to_owned(), tokens: Vec::new() })
    }

    fn end() -> Output {
        Output::End(FinishReason::Stop, Usage::default(), None)
    }

    #[test]
    fn blocks_are_opened_told_and_closed_in_order() {
        let mut blocks = Blocks::new(None);
        let outputs = [Output::Started, Output::Reasoning("hm".into()), answer("a"), answer("b"), end()];
        let steps: Vec<Step> = outputs.into_iter().flat_map(|output| blocks.take(output)).collect();
        let text = |text: &str| Block::Text(text.to_owned());
        let thinking = |text: &str| Block::Thinking(text.to_owned());
        let expected = [
            (0, What::Open(thinking(""))),
            (0, What::More(thinking("hm"))),
            (0, What::Close(thinking("hm"))),
            (1, What::Open(text(""))),
            (1, What::More(text("a"))),
            (1, What::More(text("b"))),
            (1, What::Close(text("ab"))),
        ];
        assert_eq!(steps, expected.map(|(index, what)| Step { index, what }));
        assert!(!blocks.has_calls());
    }

    #[test]
    fn an_answer_without_a_word_has_an_empty_text() {
        let whole = Whole { end: Some((FinishReason::Stop, Usage::default())), ..Whole::default() };
        assert_eq!(Blocks::new(None).of(whole), vec![Block::Text(String::new())]);
    }
}
