//! The life of spokes: which files are in the folder, what becomes of each, and which of them serve.

pub mod budget;
pub mod code;
pub mod folder;
pub mod gate;
pub mod keeper;
pub mod life;
pub mod probe;
pub mod quarantine;
pub mod registry;
pub mod slot;
pub mod store;

pub use code::Code;
