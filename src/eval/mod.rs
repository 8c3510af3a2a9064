//! Evaluates encodings: seven string metrics, a stress test, and reports. No model is needed.
//!
//! `docs/evaluation.md` has the definitions and how ambiguities are resolved.

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
