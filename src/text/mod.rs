//! Conversations as text: prompts, the chat templates that render them, and tokenizers, for serving
//! and training.

pub mod control_texts;
pub mod conversation;
pub mod fields;
mod prompt;
pub mod template;
pub mod tokenizer;

pub use conversation::Dialogue;
pub use prompt::{Prompt, Segment};
pub use template::{Call, ChatTemplate, TemplateError, Turn};
