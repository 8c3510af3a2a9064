//! The inference engine: turns prompts into tokens, exposed through the [`Engine`] trait.

mod admission;
pub mod backend;
mod batching;
mod cache_memory;
mod command;
mod command_sender;
mod computing;
mod constraint;
mod detokenizer;
mod drafting;
mod embedding;
mod error;
#[cfg(feature = "test-support")]
pub mod fake;
pub mod ffi;
mod grammar_compiler;
pub mod guard;
mod handle;
mod heartbeat;
pub mod kernels;
mod prefix_cache;
pub mod protocol;
pub mod reference;
mod sampling;
mod scheduler;
mod self_test;
mod sequence;
mod spoke;
mod spokes;
mod thread_tuner;
mod vocabulary;
mod worker;

pub use computing::{ComputingReport, KernelState, Outcome, TestState, computing_report};
pub use detokenizer::whole_characters;
pub use error::EngineError;
#[cfg(feature = "test-support")]
pub use fake::{FakeEngine, Script, ScriptedToken};
pub use guard::{CloseReason, Closed, DistinctList, Guard, Longest};
pub use handle::{LlamaEngine, LlamaOptions};
pub use protocol::*;
pub use self_test::{Line as SelfTestLine, SelfTest, trial as self_test_trial};
pub use spoke::{LoadSpoke, LoadedSpoke, ScaledSpoke, SpokeChange, SpokeSet};
pub use worker::own_memory_pays;
