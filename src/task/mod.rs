//! The encoding task: what is asked of a model, what a right answer is, and data to learn it from.

pub mod dataset;
pub mod event;
pub mod generator;
pub mod gold;
pub mod overlap;
pub mod prompt;
pub mod salient;
pub mod schema;
pub mod wording;

pub use event::Event;
pub use schema::{Encoding, encoding_schema};
