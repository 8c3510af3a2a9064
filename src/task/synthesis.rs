//! The synthesis task: the memories of an episode become its title, its summary and its salience.
//! Rows are generated from those of the encoding task and are a pure function of seed, split,
//! limits and index.

use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::generator::{Generator, Limits, Split, stream};
use crate::text::tokenizer::Message;

/// Name of the schema in `response_format.json_schema.name`.
pub const SCHEMA_NAME: &str = "episode_synthesis";
/// Maximum number of memories of an episode.
const MOST: u64 = 5;
/// Maximum characters of an event; the prompt only shows the gist of a memory.
const EVENT_CHARS: usize = 300;

const SYSTEM: &str = "You sum up episodes of memories and answer with JSON only.";

/// The first is the standard one.
const HEADS: [&str; 4] = [
    "Sum up the episode below as one JSON object: title (the memory that matters most), summary (every memory in order), \
     concepts, salience (0 to 1).",
    "These memories belong to one episode. Write its title, summary, concepts and salience as JSON.",
    "Summarise the episode. Answer with one JSON object: title, summary, concepts, salience.",
    "What happened in this episode? Keep names and numbers as they are written. JSON with title, summary, concepts, salience.",
];

/// A memory, as the task sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    /// Its gist.
    pub gist: String,
    /// Its salience.
    pub salience: f64,
    /// Its first search word other than its type.
    pub concept: Option<String>,
}

/// The answer. Fields are written in this order; all are required.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Episode {
    /// The gist of the most salient memory; the first if several are equal.
    pub title: String,
    /// All gists in order.
    pub summary: String,
    /// A search word of each memory.
    pub concepts: Vec<String>,
    /// The salience of the most salient memory.
    pub salience: f64,
}

/// The right answer for memories (at least one).
pub fn synthesise(memories: &[Remembered]) -> Episode {
    let salience = memories.iter().map(|memory| memory.salience).fold(0.0, f64::max);
    let title = memories.iter().find(|memory| memory.salience >= salience);
    let gists: Vec<&str> = memories.iter().map(|memory| memory.gist.as_str()).collect();
    let mut concepts: Vec<String> = Vec::new();
    for concept in memories.iter().filter_map(|memory| memory.concept.as_ref()) {
        if !concepts.contains(concept) {
            concepts.push(concept.clone());
        }
    }
    Episode {
        title: title.map(|memory| memory.gist.clone()).unwrap_or_default(),
        summary: gists.join("; "),
        concepts,
        salience,
    }
}

/// The JSON Schema of an answer.
pub fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "summary": {"type": "string"},
            "concepts": {"type": "array", "items": {"type": "string"}},
            "salience": {"type": "number"},
        },
        "required": ["title", "summary", "concepts", "salience"],
        "additionalProperties": false,
    })
}

/// The system and user messages that ask for a synthesis; `wording` 0 is the standard one.
pub fn messages(memories: &[Remembered], wording: usize) -> Vec<Message> {
    let lines: Vec<String> = memories
        .iter()
        .enumerate()
        .map(|(at, memory)| format!("{}. ({}) {}", at + 1, memory.salience, memory.gist))
        .collect();
    let user = format!("{}\n\nMEMORIES:\n{}", HEADS[wording % HEADS.len()], lines.join("\n"));
    let message = |role: &str, content: String| Message { role: role.to_owned(), content };
    vec![message("system", SYSTEM.to_owned()), message("user", user)]
}

/// Generates rows.
#[derive(Debug, Clone, Copy)]
pub struct Synthesis {
    seed: u64,
    split: Split,
}

impl Synthesis {
    /// A generator over the facts of a split.
    pub fn new(seed: u64, split: Split) -> Self {
        Self { seed, split }
    }

    /// The memories of row `index`, and its wording.
    pub fn memories(&self, index: u64, limits: Limits) -> (Vec<Remembered>, usize) {
        let mut rng = stream("synthesis", self.seed, self.split, index, 0);
        let limits = Limits { max_event_chars: limits.max_event_chars.min(EVENT_CHARS) };
        let events = Generator::new(self.seed, self.split).with_limits(limits);
        let count = rng.random_range(2..=MOST);
        let memories = (0..count).map(|at| {
            let encoding = events.row(index * MOST + at).encoding;
            let concept = encoding.concepts.get(1).cloned();
            Remembered { gist: encoding.gist, salience: encoding.salience, concept }
        });
        let wording = if rng.random_bool(0.6) { 0 } else { rng.random_range(1..HEADS.len()) };
        (memories.collect(), wording)
    }

    /// The system, user and assistant messages of row `index`; the last is the synthesis as
    /// compact JSON.
    pub fn messages(&self, index: u64, limits: Limits) -> Vec<Message> {
        let (memories, wording) = self.memories(index, limits);
        let mut messages = messages(&memories, wording);
        let content = serde_json::to_string(&synthesise(&memories)).expect("strings and finite numbers");
        messages.push(Message { role: "assistant".to_owned(), content });
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_is_the_memory_that_matters_most() {
        let memory = |gist: &str, salience, concept: Option<&str>| Remembered {
            gist: gist.into(),
            salience,
            concept: concept.map(str::to_owned),
        };
        let memories = [
            memory("lunch at 12", 0.2, None),
            memory("queue.rs panicked", 0.7, Some("queue.rs")),
            memory("fix queue.rs", 0.7, Some("queue.rs")),
        ];
        let episode = synthesise(&memories);
        assert_eq!(episode.title, "queue.rs panicked");
        assert_eq!(episode.summary, "lunch at 12; queue.rs panicked; fix queue.rs");
        assert_eq!((episode.concepts.len(), episode.salience), (1, 0.7));
        let asked = &messages(&memories, 0)[1].content;
        assert!(
            asked.ends_with(
                "MEMORIES:\n1. (0.2) lunch at 12\n2. (0.7) queue.rs panicked\n3. (0.7) fix queue.rs"
            )
        );
    }

    #[test]
    fn rows_repeat_differ_by_split_and_keep_the_schema() {
        let validator = jsonschema::validator_for(&schema()).unwrap();
        let [train, eval] = [Split::Train, Split::Eval].map(|split| Synthesis::new(3, split));
        for index in 0..100 {
            let row = train.messages(index, Limits::default());
            assert_eq!(row, train.messages(index, Limits::default()));
            assert_ne!(row, eval.messages(index, Limits::default()));
            assert!(
                validator.is_valid(&serde_json::from_str(&row[2].content).unwrap()),
                "{}",
                row[2].content
            );
            let (memories, _) = train.memories(index, Limits::default());
            assert!((2..=5).contains(&memories.len()));
            for memory in memories {
                assert!(row[1].content.contains(&memory.gist) && row[2].content.contains("title"));
            }
        }
    }
}
