//! One test binary; one file per command or promise.

#![allow(clippy::unwrap_used)]

mod sandbox;
