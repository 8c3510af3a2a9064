//! bespoke: makes, serves and keeps improving a small language model of your own.
//!
//! `docs/architecture.md` shows the modules and how they depend on each other.

// Sanitizers have their own allocator.
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
