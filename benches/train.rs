//! Placeholder until the train bench lands.

fn main() {}
