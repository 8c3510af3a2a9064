//! OpenAI's API: chat and text completions, responses, embeddings, models.

pub(super) mod chat;
mod chat_reply;
pub(super) mod completion;
pub(super) mod embeddings;
pub(super) mod envelope;
pub(super) mod models;
pub(super) mod responses;
