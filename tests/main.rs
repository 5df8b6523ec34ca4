//! Everything that is tried from the outside, in one binary: one file per command or promise.
#![allow(clippy::unwrap_used)]

mod abi;
mod archive;
mod archive_command;
mod assets;
mod broken;
mod build;
mod cargo;
mod cli;
mod config;
mod decoder;
mod digits;
mod elf_tools;
mod filters;
mod frame_cache;
mod frames;
mod function;
mod gate;
mod index;
mod invoke;
mod launcher;
mod needed;
mod project;
mod raw;
mod report;
mod reproducible;
mod sandbox;
mod schema;
mod strip;
mod tidy;
mod trees;
