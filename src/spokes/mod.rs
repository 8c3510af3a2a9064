//! Spokes at run time: follows the files in the folder through their states, and decides which of
//! them serve.

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
