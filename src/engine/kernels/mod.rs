//! What is computed here instead of by llama.cpp, on the CPU: the inner loops, free of llama.cpp's types.

pub mod attention;
pub mod felix;
pub mod product;
