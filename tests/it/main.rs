//! Integration tests: one file per story, each driving the real library or binary.

mod bad_input;
mod bench;
mod daemon;
mod data;
mod encode;
mod engine;
mod eval;
mod exactness;
mod export;
mod gguf_hostile;
mod mnemonic;
mod serve;
mod tokenizer;
mod train;
