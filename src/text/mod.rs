//! Conversations as text: prompts, and the chat templates that render them, for serving and
//! training.

mod prompt;
pub mod template;

pub use prompt::{Prompt, Segment};
pub use template::{Call, ChatTemplate, TemplateError, Turn};
