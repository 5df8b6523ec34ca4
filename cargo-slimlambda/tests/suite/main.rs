//! What users would miss if it broke. One binary; one module per command or promise.
#![allow(clippy::unwrap_used)]

mod strip;
