//! OpenAI's API: chat completions, embeddings, models.

pub(super) mod chat;
mod chat_message;
mod chat_reply;
mod chat_request;
mod chat_stream;
pub(super) mod embeddings;
pub(super) mod models;
mod unsupported;
