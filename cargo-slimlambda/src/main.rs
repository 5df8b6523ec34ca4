//! Parse, run, print the error.

fn main() {}
