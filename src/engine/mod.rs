//! The engine: whatever turns prompts into tokens, behind one small trait.

pub mod protocol;

pub use protocol::*;
