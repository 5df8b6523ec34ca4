//! `cargo slimlambda`: builds AWS Lambda packages that fit and are proven to start.

pub mod config;
pub mod elf;
pub mod error;
pub mod event;
pub mod limits;
pub mod sandbox;
