//! Training.

pub mod vocabulary;
