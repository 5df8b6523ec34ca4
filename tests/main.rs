//! Everything that is tried from the outside, in one binary: one file per command or promise.
#![allow(clippy::unwrap_used)]

mod abi;
mod archive;
mod assets;
mod cargo;
mod cli;
mod config;
mod elf_tools;
mod launcher;
mod needed;
mod project;
mod sandbox;
mod strip;
mod tidy;
mod trees;
