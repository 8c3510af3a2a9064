//! Where conversations come from, and what a model learns of one: its token ids and where the answer begins.

use std::path::{Path, PathBuf};

use super::TrainError;
use super::recipe::DataRecipe;
use crate::model::tokenizer::{END, Message, Tokenizer};
use crate::task::generator::{Generator, Limits, Split};

/// Conversations at random access: the same index always gives the same one.
pub trait Source: Send + Sync {
    /// Conversation `index`, its last message the assistant's; `max_event_chars` limits a generator.
    ///
    /// # Errors
    /// A row that is no conversation.
    fn conversation(&self, index: u64, max_event_chars: Option<usize>) -> Result<Vec<Message>, TrainError>;

    /// Rows, if there is an end.
    fn rows(&self) -> Option<u64>;
}

/// Training and held-out data of a recipe.
pub struct Sources {
    /// To learn from.
    pub train: Box<dyn Source>,
    /// To be judged by.
    pub eval: Box<dyn Source>,
}

impl Sources {
    /// Opens what the recipe names.
    ///
    /// # Errors
    /// Files that can't be read or hold a row that is no conversation.
    pub fn open(recipe: &DataRecipe, seed: u64) -> Result<Self, TrainError> {
        if let Some(seed) = recipe.generator_seed {
            return Ok(Self {
                train: Box::new(Generator::new(seed, Split::Train)),
                eval: Box::new(Generator::new(seed, Split::Eval)),
            });
        }
        Ok(Self {
            train: Box::new(Jsonl::open(&recipe.train, Some(seed))?),
            eval: Box::new(Jsonl::open(&recipe.eval, None)?),
        })
    }
}

impl Source for Generator {
    fn conversation(&self, index: u64, max_event_chars: Option<usize>) -> Result<Vec<Message>, TrainError> {
        let limits =
            max_event_chars.map_or_else(Limits::default, |max_event_chars| Limits { max_event_chars });
        Ok(self.with_limits(limits).row(index).messages)
    }

    fn rows(&self) -> Option<u64> {
        None
    }
}

/// Rows of JSONL files, in memory.
pub struct Jsonl {
    rows: Vec<Vec<Message>>,
    shuffle: Option<u64>,
}

#[derive(serde::Deserialize)]
struct Row {
    messages: Vec<Message>,
}

impl Jsonl {
    /// Reads files whose rows have `messages`, in order or (for training) drawn with replacement from a seed.
    ///
    /// # Errors
    /// A file that can't be read, an empty set, a row without an assistant's last message; file and line are named.
    pub fn open(paths: &[PathBuf], shuffle: Option<u64>) -> Result<Self, TrainError> {
        let mut rows = Vec::new();
        for path in paths {
            let text = fs_err::read_to_string(path).map_err(TrainError::file(path))?;
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                rows.push(conversation(line).map_err(|message| TrainError::Row {
                    place: format!("{}, line {}", path.display(), number + 1),
                    message,
                })?);
            }
        }
        if rows.is_empty() {
            let path = paths.first().map_or(Path::new("data.train"), PathBuf::as_path);
            return Err(TrainError::Row { place: path.display().to_string(), message: "no rows".into() });
        }
        Ok(Self { rows, shuffle })
    }
}

fn conversation(line: &str) -> Result<Vec<Message>, String> {
    let row: Row = serde_json::from_str(line).map_err(|e| e.to_string())?;
    match row.messages.last().map(|message| message.role.as_str()) {
        Some("assistant") => Ok(row.messages),
        Some(role) => Err(format!("the last message is of {role:?}, expected assistant")),
        None => Err("messages is empty".into()),
    }
}

impl Source for Jsonl {
    fn conversation(&self, index: u64, _max_event_chars: Option<usize>) -> Result<Vec<Message>, TrainError> {
        let at = self.shuffle.map_or(index, |seed| mix(seed ^ mix(index))) % self.rows.len() as u64;
        Ok(self.rows[at as usize].clone())
    }

    fn rows(&self) -> Option<u64> {
        Some(self.rows.len() as u64)
    }
}

/// SplitMix64's finaliser (Steele et al. 2014): neighbouring numbers become unrelated ones.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// One conversation as tokens. The model reads `ids[..n - 1]` and learns `ids[answer..]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Prompt, answer, end marker.
    pub ids: Vec<u32>,
    /// Index of the answer's first token.
    pub answer: usize,
}

impl Sample {
    /// Tokenises a conversation whose last message is the answer.
    ///
    /// # Errors
    /// A role without a marker.
    pub fn new(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Self, TrainError> {
        let Some((answer, prompt)) = messages.split_last() else {
            let message = "expected at least the assistant's message".into();
            return Err(TrainError::Row { place: "a conversation without messages".into(), message });
        };
        let mut ids = tokenizer.encode_chat(prompt)?;
        let start = ids.len();
        ids.extend(tokenizer.encode_answer(&answer.content)?);
        ids.push(END);
        Ok(Self { ids, answer: start })
    }

    /// Tokens that the model reads.
    pub fn inputs(&self) -> usize {
        self.ids.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_row_names_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let good =
            r#"{"id":"a","messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}"#;
        let open = |rows: &str| {
            crate::durable::write(&path, rows.as_bytes()).unwrap();
            Jsonl::open(std::slice::from_ref(&path), Some(1)).map_err(|e| e.to_string())
        };
        let source = open(&format!("{good}\n\n{good}")).unwrap();
        assert_eq!(source.rows(), Some(2));
        assert_eq!(source.conversation(5, None).unwrap(), source.conversation(5, None).unwrap());
        let error = open(&format!("{good}\n{}", good.replace("assistant", "user"))).err().unwrap();
        assert!(error.contains("rows.jsonl, line 2") && error.contains("expected assistant"), "{error}");
        assert!(open("").err().unwrap().contains("no rows"));
    }
}
