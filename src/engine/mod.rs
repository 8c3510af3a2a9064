//! The engine: whatever turns prompts into tokens, behind one small trait.

pub mod backend;
pub mod fake;
pub mod ffi;
mod minimal;
pub mod protocol;
pub mod reference;

pub use fake::{FakeEngine, Script};
pub use protocol::*;
