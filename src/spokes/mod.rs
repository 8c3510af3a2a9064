//! The life of spokes: which files are in the folder, what becomes of each, and which of them serve.

pub mod eviction;
pub mod folder;
pub mod gate;
pub mod leases;
pub mod life;
pub mod probe;
pub mod quarantine;
pub mod reason_code;
pub mod reconciler;
pub mod registry;
pub mod store;

pub use reason_code::Code;
