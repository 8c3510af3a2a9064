//! Integration tests: one file per story, each driving the real library or binary.

mod data;
mod export;
mod gguf_hostile;
mod tokenizer;
mod train;
