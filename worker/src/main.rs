//! The `penstock-worker` command.
fn main() {}
