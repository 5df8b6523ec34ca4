//! What an ELF file is, what it needs, and what of it can go. Imports no sibling module.

pub mod image;
pub mod strip;
