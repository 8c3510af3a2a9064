//! The engine: whatever turns prompts into tokens, behind one small trait.

pub mod fake;
mod minimal;
pub mod protocol;

pub use fake::{FakeEngine, Script};
pub use protocol::*;
