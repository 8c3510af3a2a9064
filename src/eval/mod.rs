//! Judging an encoding: seven string metrics, a stress test, and reports over many of them. No model is needed.
//!
//! The definitions and the decisions where they leave room are in `docs/evaluation.md`.

pub mod entities;
pub mod metrics;
pub mod prompt_leakage;
pub mod report;
pub mod rows;
pub mod schema;
pub mod speed;
pub mod tasks;
pub mod twin_similarity;

pub use metrics::{Judgement, Scores, judge};
