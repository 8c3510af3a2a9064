//! Spokes as files: what they hold, whether they fit a post, and how one format becomes another. Safe Rust, no engine.
//!
//! A file that someone dropped is hostile until [`inspect`] says otherwise: only then may llama.cpp see a byte of it.

mod archive;
pub mod budget;
pub mod code;
mod container;
mod convert;
mod dropped;
mod facts;
pub mod felix;
pub mod folder;
pub mod gate;
mod identity;
mod inspect;
pub mod keeper;
mod keys;
pub mod life;
mod limits;
mod lora;
mod metadata;
mod peft;
mod pin;
pub mod post;
pub mod probe;
pub mod quarantine;
mod refusal;
pub mod registry;
pub mod slot;
pub mod stand_in;
pub mod store;

pub use crate::digest::Digest;
pub use code::Code;
pub use convert::{Split, convert, load_felix, read_folded, split, to_served};
pub use facts::{Adapter, FelixFacts, Format, Kind, LayerNorms, LoraFacts, Spoke};
pub use identity::Generation;
pub use inspect::inspect;
pub use limits::Limits;
pub use metadata::{origin_texts, unexported_origin_texts};
pub use pin::{Pinned, generation, pin};
pub use post::Post;
pub use refusal::{Reason, Refusal};
