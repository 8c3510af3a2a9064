//! The parts of the reconciler's state. Each keeps one idea with private fields; none knows the
//! engine or the clock, and all but the folder's view leave the disk alone.

pub mod aliases;
mod backoff;
pub mod content;
pub mod examinations;
pub mod folder_view;
pub mod instance;
pub mod instances;
pub mod jobs;
pub mod moment;
pub mod outbox;
pub mod residency;
