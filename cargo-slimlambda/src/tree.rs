//! What a package is made of: one [`Item`] for each file, wherever it will be placed.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::Placement;

/// Directory of the package that holds native libraries.
pub const LIBRARY_DIRECTORY: &str = "lib";
/// Directory of the package that holds the real binary where a launcher is the `bootstrap`.
pub const PROGRAM_DIRECTORY: &str = "bin";

/// A file's bytes: read, or mapped from an input that is not written to.
#[derive(Debug)]
pub enum Bytes {
    /// In memory.
    Owned(Vec<u8>),
    /// In the page cache.
    Mapped(memmap2::Mmap),
}

impl Bytes {
    /// Maps a file.
    pub fn map(path: &Path) -> anyhow::Result<Bytes> {
        let failed = || format!("failed to read `{}`", path.display());
        let file = std::fs::File::open(path).with_context(failed)?;
        if file.metadata().with_context(failed)?.len() == 0 {
            return Ok(Bytes::Owned(Vec::new())); // nothing to map
        }
        // SAFETY: the mapping is private and read-only. Whoever truncates a build's inputs while it reads
        // them ends it with SIGBUS, as with any linker that maps its inputs; no output is written by then.
        #[allow(unsafe_code)] // the one mapping of the build side
        let map = unsafe { memmap2::Mmap::map(&file) };
        Ok(Bytes::Mapped(map.with_context(failed)?))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }
}

/// What an item is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The function's own executable.
    Binary,
    /// A native library.
    Library,
    /// A file that the configuration asked for.
    Asset,
}

/// What stripping did to an item.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strip {
    /// Sections are gone, and what is loaded is proven equal.
    Stripped,
    /// There was nothing left to remove.
    AlreadyStripped,
    /// Not tried: not an ELF file, or the configuration says so.
    Not,
    /// The original is shipped, for this reason.
    Refused(String),
}

/// One file or symlink of the package.
#[derive(Debug)]
pub struct Item {
    /// Path in the package, `/`-separated. The binary's is `bin/<name>`.
    pub dest: String,
    /// What it is for.
    pub role: Role,
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub content: Content,
    /// Bytes before stripping.
    pub original_size: u64,
    /// What stripping did.
    pub strip: Strip,
    /// Where it may go.
    pub placement: Placement,
    /// Unpacked on first use.
    pub lazy: bool,
    /// Where it comes from.
    pub source: PathBuf,
    /// Number of the configuration's asset that it is part of, if it is.
    pub asset: Option<usize>,
}

/// What is at an item's path.
#[derive(Debug)]
pub enum Content {
    /// A regular file.
    File(Bytes),
    /// A symlink, with its target.
    Symlink(String),
}

impl Item {
    /// The file's bytes; none for a symlink.
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::File(bytes) => bytes,
            Content::Symlink(_) => &[],
        }
    }

    /// Bytes that it counts against Lambda's limits.
    pub fn size(&self) -> u64 {
        self.content.size()
    }
}

impl Content {
    /// Bytes of the file, or of the link's target.
    pub fn size(&self) -> u64 {
        match self {
            Content::File(bytes) => bytes.len() as u64,
            Content::Symlink(target) => target.len() as u64,
        }
    }
}

/// Number of the item that the symlink `items[number]` points at, or of one below it if that is a directory.
pub fn pointed_at(items: &[Item], number: usize) -> Option<usize> {
    let Content::Symlink(target) = &items[number].content else {
        return None;
    };
    let mut path: Vec<&str> = items[number].dest.split('/').collect();
    path.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                path.pop()?;
            }
            name => path.push(name),
        }
    }
    let path = path.join("/");
    let is = |item: &Item| {
        let below = item.dest.strip_prefix(&path);
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    items.iter().position(is).filter(|found| *found != number)
}
