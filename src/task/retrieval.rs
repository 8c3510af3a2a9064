//! The retrieval task: the answer to a question is the memory that has it, with its number, or
//! that there is none. Rows are generated from those of the encoding task and are a pure function
//! of seed, split, limits and index.

use rand::Rng;

use super::generator::{Generator, Limits, Split, stream};
use super::salient;
use crate::text::tokenizer::Message;

/// Maximum number of memories to choose from.
const MOST: u64 = 5;
/// Maximum characters of an event; the question only shows the summary of a memory.
const EVENT_CHARS: usize = 240;
/// Share of the questions that no memory answers.
const UNANSWERED: f64 = 0.15;

const SYSTEM: &str = "You answer questions from memories, in their own words.";

/// The first is the standard one.
const HEADS: [&str; 3] = [
    "Answer the question with the memory that knows, and its number. If none does, say so.",
    "Find the memory that answers the question and repeat it with its number; if there is none, say that.",
    "Which of these memories answers the question? Give its number and its words, or say that nothing is remembered.",
];

const QUESTIONS: [&str; 4] =
    ["What do we know about {}?", "What was said about {}?", "Is there anything on {}?", "Tell me about {}."];

/// A question, the memories to answer it from, and the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The memories' texts.
    pub memories: Vec<String>,
    /// The term that is asked about.
    pub term: String,
    /// The whole question.
    pub question: String,
    /// Index of the memory that answers it.
    pub answered_by: Option<usize>,
    /// Index of the head; 0 is the standard one.
    pub wording: usize,
}

impl Asked {
    /// The right answer.
    pub fn answer(&self) -> String {
        match self.answered_by {
            Some(at) => format!("[{}] {}", at + 1, self.memories[at]),
            None => format!("Nothing is remembered about {}.", self.term),
        }
    }

    /// The system and user messages that ask the question.
    pub fn messages(&self) -> Vec<Message> {
        let lines: Vec<String> =
            self.memories.iter().enumerate().map(|(at, text)| format!("[{}] {text}", at + 1)).collect();
        let user = format!(
            "{}\n\nMEMORIES:\n{}\n\nQUESTION: {}",
            HEADS[self.wording % HEADS.len()],
            lines.join("\n"),
            self.question
        );
        let message = |role: &str, content: String| Message { role: role.to_owned(), content };
        vec![message("system", SYSTEM.to_owned()), message("user", user)]
    }
}

/// Generates rows.
#[derive(Debug, Clone, Copy)]
pub struct Retrieval {
    seed: u64,
    split: Split,
}

impl Retrieval {
    /// A generator over the facts of a split.
    pub fn new(seed: u64, split: Split) -> Self {
        Self { seed, split }
    }

    /// The question of row `index`.
    pub fn asked(&self, index: u64, limits: Limits) -> Asked {
        let mut rng = stream("retrieval", self.seed, self.split, index, 0);
        let limits = Limits { max_event_chars: limits.max_event_chars.min(EVENT_CHARS) };
        let events = Generator::new(self.seed, self.split).with_limits(limits);
        let count = rng.random_range(2..=MOST);
        let summary = |at: u64| events.row(index * (MOST + 1) + at).encoding.summary;
        let memories: Vec<String> = (0..count).map(summary).collect();
        let target = rng.random_range(0..memories.len());
        let unanswered = rng.random_bool(UNANSWERED);
        // An unanswerable question is about another memory, which is not among these.
        let about = if unanswered { summary(MOST) } else { memories[target].clone() };
        let known = |term: &str| memories.iter().filter(|memory| memory.contains(term)).count();
        let expected = usize::from(!unanswered);
        let terms: Vec<String> = salient::terms(&about, 4)
            .into_iter()
            .map(|term| term.text.to_owned())
            .filter(|term| known(term) == expected)
            .collect();
        // Without a term that distinguishes the memory from the others, the question quotes its
        // whole beginning.
        let term = if terms.is_empty() {
            let beginning = about.split(' ').take(3).collect::<Vec<_>>().join(" ");
            beginning.trim_end_matches(['.', ',', ':']).to_owned()
        } else {
            terms[rng.random_range(0..terms.len())].clone()
        };
        let answered_by = memories.iter().position(|memory| memory.contains(&term));
        let question = QUESTIONS[rng.random_range(0..QUESTIONS.len())].replace("{}", &term);
        let wording = if rng.random_bool(0.6) { 0 } else { rng.random_range(1..HEADS.len()) };
        Asked { memories, term, question, answered_by, wording }
    }

    /// The system, user and assistant messages of row `index`.
    pub fn messages(&self, index: u64, limits: Limits) -> Vec<Message> {
        let asked = self.asked(index, limits);
        let mut messages = asked.messages();
        messages.push(Message { role: "assistant".to_owned(), content: asked.answer() });
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_repeats_the_memory_that_holds_the_term() {
        let retrieval = Retrieval::new(3, Split::Train);
        let (mut unanswered, mut first) = (0, 0);
        for index in 0..300 {
            let asked = retrieval.asked(index, Limits::default());
            assert_eq!(asked, retrieval.asked(index, Limits::default()));
            let row = retrieval.messages(index, Limits::default());
            assert!(row[1].content.contains(&format!("[1] {}\n", asked.memories[0])));
            assert!(row[1].content.ends_with(&asked.question) && asked.question.contains(&asked.term));
            if let Some(at) = asked.answered_by {
                first += usize::from(at == 0);
                assert!(asked.memories[at].contains(&asked.term));
                assert_eq!(row[2].content, format!("[{}] {}", at + 1, asked.memories[at]));
            } else {
                unanswered += 1;
                assert!(!asked.memories.iter().any(|memory| memory.contains(&asked.term)));
                assert!(row[2].content.contains(&asked.term), "{}", row[2].content);
            }
        }
        assert!((15..=90).contains(&unanswered), "{unanswered} of 300 unanswered");
        assert!((40..=160).contains(&first), "{first} of 300 answered by the first memory");
        let eval = Retrieval::new(3, Split::Eval);
        assert_ne!(eval.asked(0, Limits::default()), retrieval.asked(0, Limits::default()));
    }
}
