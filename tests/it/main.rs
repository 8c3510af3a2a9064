//! Integration tests: one file per story, each driving the real library or binary.

mod bad_input;
mod daemon;
mod data;
mod encode;
mod engine;
mod eval;
mod export;
mod gguf_hostile;
mod hostile;
mod load;
mod memory;
mod mnemonic;
mod observability;
mod program;
mod real;
mod security;
mod serve;
mod soak;
mod tokenizer;
mod train;
