//! Spokes as files: what they contain, whether they fit a post, and how they are converted. Safe
//! Rust, independent of the engine.
//!
//! A dropped file is hostile until [`inspect`] accepts it. Only then may llama.cpp read any byte of
//! it.

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
