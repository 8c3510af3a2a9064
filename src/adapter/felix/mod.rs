//! Felix spokes: gated bottlenecks after decoder blocks. Reads their files, and holds their weights
//! in one form for all formats.

pub(super) mod files;
pub(super) mod layout;
pub(super) mod names;
pub(super) mod weights;

pub use weights::{Folded, FoldedLayer, Trained, TrainedLayer};
