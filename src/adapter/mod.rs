//! Spokes as files: what they hold, whether they fit a post, and how one format becomes another. Safe
//! Rust, no engine.
//!
//! A file that someone dropped is hostile until [`inspect`] says otherwise: only then may llama.cpp
//! see a byte of it.

mod archive;
mod container;
mod convert;
mod dropped;
mod facts;
pub mod felix;
mod identity;
mod inspect;
mod keys;
mod limits;
mod lora;
mod metadata;
mod name;
mod peft;
pub mod post;
pub mod refusal;
mod staging;
pub mod synthetic_model;

pub use crate::digest::Digest;
pub use convert::{Split, convert, load_felix, read_folded, split, to_served};
pub use facts::{Adapter, FelixFacts, Format, Kind, LayerNorms, LoraFacts, Spoke};
pub use identity::Generation;
pub use inspect::inspect;
pub use limits::Limits;
pub use metadata::{origin_texts, unexported_origin_texts};
pub use name::check_name;
pub use post::Post;
pub use refusal::{Defect, Refusal};
pub use staging::{Pinned, generation, pin};
