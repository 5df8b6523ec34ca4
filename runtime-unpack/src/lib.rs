//! Unpacks a slimlambda archive into /tmp on the first cold start: in parallel, verified, atomic, crash-safe, and shared
//! safely by racing processes.
//!
//! A function asks for its files by their path in the package and does not care where the build placed them:
//!
//! ```no_run
//! let model = runtime_unpack::asset("models/digits.onnx")?;
//! # Ok::<(), runtime_unpack::Error>(())
//! ```
//!
//! With the launcher (`bootstrap`, put there by `cargo slimlambda build`) everything but lazy entries is unpacked before the
//! function starts. Without it the same call unpacks what it is asked for.

#![no_std]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

#[cfg(feature = "std")]
mod asset;
mod error;
#[cfg(feature = "std")]
pub mod extract;
pub mod filter;
pub mod format;
mod fs;
pub mod launch;
pub mod reader;
pub mod source;
pub mod store;
#[cfg(feature = "launcher")]
pub mod sys;
#[cfg(not(feature = "launcher"))]
mod sys;
mod unpack;

#[cfg(feature = "carried")]
pub mod carried;

#[cfg(feature = "std")]
pub use asset::{asset, task_root, tree};
pub use error::{Error, Result};
