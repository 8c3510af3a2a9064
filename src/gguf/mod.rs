//! The gguf room.
