//! Sources of rows.

use super::row::Row;
use crate::digest::Digest;
use crate::task::generator::{Generator, Limits, Split};
use crate::task::{retrieval::Retrieval, synthesis::Synthesis};
use crate::train::TrainError;
use crate::train::recipe::GeneratorName;

/// Rows with random access: an index always gives the same row.
pub trait Source: Send + Sync {
    /// Row `index`; `max_event_chars` limits a generator.
    ///
    /// # Errors
    /// An invalid row; its file and line are named.
    fn row(&self, index: u64, max_event_chars: Option<usize>) -> Result<Row, TrainError>;

    /// Number of rows, unless they are endless.
    fn rows(&self) -> Option<u64> {
        None
    }

    /// The place of a row, for messages.
    fn place(&self, index: u64) -> String;

    /// Hash of all rows, unless they are endless.
    fn digest(&self) -> Option<Digest> {
        None
    }
}

/// The rows of a task's generator.
pub(super) fn generated(name: GeneratorName, seed: u64, split: Split) -> Box<dyn Source> {
    match name {
        GeneratorName::Encoding => Box::new(Generator::new(seed, split)),
        GeneratorName::Synthesis => Box::new(Synthesis::new(seed, split)),
        GeneratorName::Retrieval => Box::new(Retrieval::new(seed, split)),
    }
}

fn limits(max_event_chars: Option<usize>) -> Limits {
    max_event_chars.map_or_else(Limits::default, |max_event_chars| Limits { max_event_chars })
}

impl Source for Generator {
    fn row(&self, index: u64, max_event_chars: Option<usize>) -> Result<Row, TrainError> {
        Ok(Row::Chat(Generator::row(&self.with_limits(limits(max_event_chars)), index).messages))
    }
    fn place(&self, index: u64) -> String {
        format!("generator of encodings, row {index}")
    }
}

impl Source for Synthesis {
    fn row(&self, index: u64, max_event_chars: Option<usize>) -> Result<Row, TrainError> {
        Ok(Row::Chat(self.messages(index, limits(max_event_chars))))
    }
    fn place(&self, index: u64) -> String {
        format!("generator of syntheses, row {index}")
    }
}

impl Source for Retrieval {
    fn row(&self, index: u64, max_event_chars: Option<usize>) -> Result<Row, TrainError> {
        Ok(Row::Chat(self.messages(index, limits(max_event_chars))))
    }
    fn place(&self, index: u64) -> String {
        format!("generator of retrievals, row {index}")
    }
}
