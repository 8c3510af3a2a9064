//! The encoding task: the prompt, the right answers, and training data.

pub mod dataset;
pub mod event;
pub mod generator;
pub mod gold;
pub mod overlap;
pub mod prompt;
pub mod retrieval;
pub mod salient;
pub mod schema;
pub mod synthesis;
pub mod wording;

pub use event::{Event, SOURCES};
pub use schema::{Encoding, encoding_schema};

/// Names of schemas that identify the tasks of a client: those of mnemonic.
pub const TASKS: [&str; 9] = [
    schema::SCHEMA_NAME,
    "classification_response",
    "episode_synthesis",
    "gate_response",
    "merge_gist",
    "pattern_response",
    "principle_response",
    "axiom_response",
    "insight_response",
];
