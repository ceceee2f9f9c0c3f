//! The local stack of real parts, and everything that runs on it.
fn main() {}
