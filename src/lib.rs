//! bespoke: makes, serves and keeps improving a small language model of a person's own.
//!
//! The rooms of the house and the directions between them are drawn in `docs/architecture.md`.

// A sanitizer brings its own.
pub mod adapter;
#[cfg(not(fuzzing))]
mod allocator;
pub mod api;
pub mod atomic_file;
pub mod cli;
pub mod config;
pub mod cpu_features;
pub mod database;
pub mod descriptors;
pub mod device;
pub mod digest;
pub mod engine;
pub mod eval;
pub mod failpoints;
pub mod gguf;
pub mod hub;
pub mod json_schema;
pub mod last_run;
pub mod model;
pub mod native;
mod simd_math;
pub mod spokes;
pub mod svg;
pub mod task;
pub mod text;
pub mod train;
