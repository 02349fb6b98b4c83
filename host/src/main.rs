//! The `handover` command: daemon and client.
fn main() {}
