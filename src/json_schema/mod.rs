//! JSON Schema as a document: which keywords hold schemas, which hold data, and where references
//! lead. All code that walks a schema uses this module, so that data (`const`, `default`, a
//! property's name) is never read as a schema.

mod document;
mod keywords;
mod uri;

pub use document::{Document, Place, step};
pub use keywords::{Holds, holds, inside, walk, walk_mut};

/// What is wrong with a schema, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Fault {
    /// A JSON pointer from the root of the schema, as a URI fragment.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl Fault {
    /// A fault at this path.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

#[cfg(test)]
mod tests;
