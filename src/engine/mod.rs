//! The engine: whatever turns prompts into tokens, behind one small trait.

pub mod backend;
mod batching;
mod cache;
mod compiler;
mod constraint;
mod crew;
mod drafting;
mod embedding;
pub mod fake;
pub mod ffi;
mod foresight;
pub mod guard;
mod heart;
mod kernels;
mod llama;
mod minimal;
pub mod protocol;
pub mod reference;
mod run;
mod sampling;
mod scheduler;
mod spoke;
mod spokes;
mod text;
mod vocabulary;
mod way;
mod worker;

pub use fake::{FakeEngine, Script, ScriptedToken};
pub use guard::{CloseReason, Closed, DistinctList, Guard, Longest};
pub use llama::{LlamaEngine, LlamaSettings, MAX_SEQUENCES};
pub use protocol::*;
pub use spoke::{LoadSpoke, LoadedSpoke, ScaledSpoke, SpokeChange, SpokeSet};
pub use text::whole_characters;
