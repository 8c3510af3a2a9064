//! The engine: whatever turns prompts into tokens, behind one small trait.

pub mod backend;
mod batching;
mod cache;
mod cache_memory;
mod compiler;
mod computing;
mod constraint;
mod crew;
mod drafting;
mod embedding;
pub mod fake;
pub mod ffi;
mod foresight;
mod heart;
pub mod kernels;
mod llama;
pub mod protocol;
pub mod reference;
mod run;
mod sampling;
mod scheduler;
mod self_test;
mod spoke;
mod spokes;
mod text;
mod vocabulary;
mod way;
mod worker;

pub use computing::{Computing, ComputingReport, KernelChoice, KernelState, Outcome, TestState};
pub use fake::{FakeEngine, Script, ScriptedToken};
pub use llama::{LlamaEngine, LlamaSettings, MAX_SEQUENCES};
pub use protocol::*;
pub use self_test::{Line as SelfTestLine, SelfTest, trial as self_test_trial};
pub use spoke::{LoadSpoke, LoadedSpoke, ScaledSpoke, SpokeChange, SpokeSet};
pub use text::whole_characters;
