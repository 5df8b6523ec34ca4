//! What an ELF file is, what it needs, and what of it can go. Imports no sibling module.

pub mod abi;
pub mod closure;
pub mod dlopen;
pub mod explain;
pub mod identify;
pub mod image;
pub mod needed;
pub mod runtime;
pub mod search;
pub mod strip;
