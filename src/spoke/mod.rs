//! Spokes as files: what they hold, whether they fit a post, and how one format becomes another. Safe Rust, no engine.
//!
//! A file that someone dropped is hostile until [`inspect`] says otherwise: only then may llama.cpp see a byte of it.

pub mod budget;
mod facts;
pub mod folder;
mod generation;
mod inspect;
pub mod life;
mod limits;
mod open;
pub mod post;
mod refusal;
pub mod registry;
pub mod slot;
pub mod store;

pub use facts::{Adapter, FelixFacts, Format, Kind, LayerNorms, LoraFacts, Spoke};
pub use generation::{Digest, Generation};
pub use inspect::inspect;
pub use limits::Limits;
pub use post::Post;
pub use refusal::{Reason, Refusal};
