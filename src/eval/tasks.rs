//! Evaluates the tasks other than encoding: whether a synthesis covers its memories, whether a
//! question found its memory.

use std::collections::HashMap;

use serde::Serialize;

use crate::task::retrieval::Asked;
use crate::task::synthesis::{Episode, Remembered, synthesise};

/// Shares, each between 0 and 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct SynthesisScores {
    /// The answer is the JSON object that was asked for.
    pub parsed: f64,
    /// Its title is the gist of the memory that matters most.
    pub title: f64,
    /// Share of the memories whose gist the summary has, word for word.
    pub memories: f64,
    /// Its salience is that of the memory that matters most.
    pub salience: f64,
    /// Share of the right search words that it contains.
    pub concepts: f64,
}

/// Shares, each between 0 and 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RetrievalScores {
    /// It names the memory with the answer, or says that there is none.
    pub found: f64,
    /// It equals the right answer.
    pub exact: f64,
    /// F1 of the words of the answer and of the right answer.
    pub words: f64,
}

/// Judges a synthesis; an answer that is no JSON object of the schema counts as 0 everywhere.
pub fn synthesis(memories: &[Remembered], answer: &str) -> SynthesisScores {
    let Ok(found) = serde_json::from_str::<Episode>(answer) else { return SynthesisScores::default() };
    let right = synthesise(memories);
    let share = |count: usize, of: usize| if of == 0 { 1.0 } else { count as f64 / of as f64 };
    let held = memories.iter().filter(|memory| found.summary.contains(&memory.gist)).count();
    let named = right.concepts.iter().filter(|concept| found.concepts.contains(concept)).count();
    SynthesisScores {
        parsed: 1.0,
        title: f64::from(u8::from(found.title == right.title)),
        memories: share(held, memories.len()),
        salience: f64::from(u8::from((found.salience - right.salience).abs() < 1e-9)),
        concepts: share(named, right.concepts.len()),
    }
}

/// Judges an answer to a question.
pub fn retrieval(asked: &Asked, answer: &str) -> RetrievalScores {
    let answer = answer.trim();
    let right = asked.answer();
    let begins = match asked.answered_by {
        Some(at) => answer.starts_with(&format!("[{}]", at + 1)),
        None => answer.starts_with("Nothing is remembered"),
    };
    RetrievalScores {
        found: f64::from(u8::from(begins)),
        exact: f64::from(u8::from(answer == right)),
        words: f1(answer, &right),
    }
}

/// Twice the number of common words over the number of words of both.
fn f1(a: &str, b: &str) -> f64 {
    let counts = |text: &str| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for word in text.split_whitespace() {
            *counts.entry(word.to_owned()).or_default() += 1;
        }
        counts
    };
    let (a, b) = (counts(a), counts(b));
    let shared: usize = a.iter().map(|(word, count)| b.get(word).map_or(0, |other| *count.min(other))).sum();
    let all: usize = a.values().chain(b.values()).sum();
    if all == 0 { 0.0 } else { 2.0 * shared as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synthesis_is_judged_part_by_part() {
        let memory = |gist: &str, salience, concept: &str| Remembered {
            gist: gist.into(),
            salience,
            concept: Some(concept.into()),
        };
        let memories = [memory("a fails", 0.7, "a"), memory("b is fine", 0.3, "b")];
        let right = serde_json::to_string(&synthesise(&memories)).unwrap();
        let all = SynthesisScores { parsed: 1.0, title: 1.0, memories: 1.0, salience: 1.0, concepts: 1.0 };
        assert_eq!(synthesis(&memories, &right), all);
        let half = r#"{"title":"b is fine","summary":"b is fine","concepts":["a","x"],"salience":0.7}"#;
        let expected = SynthesisScores { title: 0.0, memories: 0.5, concepts: 0.5, ..all };
        assert_eq!(synthesis(&memories, half), expected);
        for broken in ["", "a fails", "{\"gist\":\"a\"}", &right[..right.len() - 2]] {
            assert_eq!(synthesis(&memories, broken), SynthesisScores::default(), "{broken}");
        }
    }

    #[test]
    fn an_answer_needs_number_and_words() {
        let mut asked = Asked {
            memories: vec!["one two".into(), "three four".into()],
            term: "four".into(),
            question: "What of four?".into(),
            answered_by: Some(1),
            wording: 0,
        };
        let scores = |asked: &Asked, answer| retrieval(asked, answer);
        assert_eq!(scores(&asked, "[2] three four"), RetrievalScores { found: 1.0, exact: 1.0, words: 1.0 });
        let wrong = scores(&asked, "[1] three four");
        assert!(wrong.found < 0.5 && wrong.exact < 0.5);
        assert!((wrong.words - 4.0 / 6.0).abs() < 1e-12);
        assert_eq!(scores(&asked, ""), RetrievalScores::default());
        asked.answered_by = None;
        assert!(scores(&asked, "Nothing is remembered about four.").exact > 0.5);
        assert!(scores(&asked, "[2] three four").found < 0.5);
    }
}
