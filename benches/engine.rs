//! Placeholder until the engine bench lands.

fn main() {}
