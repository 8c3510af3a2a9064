//! Conversations as text: prompts, and the chat templates that render them, for serving and
//! training.

pub mod conversation;
pub mod fields;
mod prompt;
pub mod template;

pub use conversation::Dialogue;
pub use prompt::{Prompt, Segment};
pub use template::{Call, ChatTemplate, TemplateError, Turn};
