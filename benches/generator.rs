//! Placeholder until the generator bench lands.

fn main() {}
