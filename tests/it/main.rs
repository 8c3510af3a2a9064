//! Integration tests: one file per story, each driving the real library or binary.

mod async_openai;
mod bad_input;
mod bench;
mod completions;
mod daemon;
mod data;
mod encode;
mod engine;
mod eval;
mod exactness;
mod export;
mod gguf_hostile;
mod likelihood;
mod llama_server;
mod manner;
mod mnemonic;
mod openai_client;
mod serve;
mod tokenizer;
mod tools;
mod train;
