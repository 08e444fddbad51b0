//! slat.
fn main() {}
