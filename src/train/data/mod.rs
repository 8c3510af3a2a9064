//! What is learnt from: rows of JSONL files and of generators, as tokens, mixed by weight, in an
//! order that the seed decides.

mod cache;
mod chat;
mod dialogue;
mod domain;
mod jsonl;
mod loading;
mod order;
mod position;
mod row;
mod source;

pub use chat::{Chat, Sample};
pub use domain::{Domain, Mixture, Sources};
pub use jsonl::Jsonl;
pub use loading::next_weights;
pub use position::{Piece, Position};
pub use row::Row;
pub use source::Source;
