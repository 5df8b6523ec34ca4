//! What users would miss if it broke. One binary; one module per command or promise.
#![allow(clippy::unwrap_used)]

mod abi;
mod elf_tools;
mod needed;
mod strip;
