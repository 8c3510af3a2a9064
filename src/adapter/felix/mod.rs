//! Felix spokes: gated bottlenecks behind decoder blocks. Their files, and their weights in one form for all.

pub(super) mod files;
pub(super) mod layout;
pub(super) mod names;
pub(super) mod weights;

pub use weights::{Folded, FoldedLayer, Trained, TrainedLayer};
