//! Files of the package by name, wherever they were placed; lazy ones are unpacked on first use.

use crate::error::{Error, Result};
use crate::format::{self, parse_hex};
use crate::source::ArchiveFile;
use crate::store::{self, Options, Tree};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The path of a file or directory of the package, there and complete when this returns.
///
/// `path` is the asset's `dest`, `/`-separated: `"models/digits.onnx"`. Looked for, in this order:
///
/// 1. in the sideload archive: already unpacked by the launcher, or (lazy entries; functions without the launcher)
///    unpacked now, once per execution environment, whatever number of threads and processes ask;
/// 2. uncompressed in the package: beside the launcher, in `LAMBDA_TASK_ROOT`, beside this executable, in `/opt`;
/// 3. in `CARGO_MANIFEST_DIR`, so that `cargo run` and `cargo test` find the sources of the assets.
///
/// # Errors
/// [`Error::NoAsset`] naming the places searched; whatever unpacking can fail with.
pub fn asset(path: &str) -> Result<PathBuf> {
    if let Some(source) = archive()?
        && let Some(found) = unpacked(source, path)?
    {
        return Ok(found);
    }
    let mut searched = Vec::new();
    for directory in directories() {
        let candidate = directory.join(path);
        if format::path_fault(path.as_bytes()).is_none() && candidate.exists() {
            return Ok(candidate);
        }
        searched.push(format!("`{}`", directory.display()));
    }
    if let Some(source) = archive()? {
        searched.insert(0, format!("`{}`", String::from_utf8_lossy(&source.path)));
    }
    Err(Error::NoAsset {
        path: path.into(),
        searched: searched.join(", "),
    })
}

/// The directory of the deployment package (`/var/task` on Lambda).
pub fn task_root() -> Option<PathBuf> {
    ["SLIMLAMBDA_TASK", "LAMBDA_TASK_ROOT"]
        .iter()
        .find_map(std::env::var_os)
        .map(PathBuf::from)
}

/// The tree that the launcher unpacked, if it did.
pub fn tree() -> Option<PathBuf> {
    std::env::var_os("SLIMLAMBDA_TREE").map(PathBuf::from)
}

fn directories() -> Vec<PathBuf> {
    let executable = std::env::current_exe()
        .ok()
        .and_then(|p| p.parent().map(Path::to_path_buf));
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let mut out: Vec<PathBuf> = Vec::new();
    for directory in task_root()
        .into_iter()
        .chain(executable)
        .chain([PathBuf::from("/opt")])
        .chain(manifest)
    {
        if !out.contains(&directory) {
            out.push(directory);
        }
    }
    out
}

/// The archive of this package, opened once per process.
fn archive() -> Result<Option<&'static ArchiveFile>> {
    static ARCHIVE: OnceLock<Result<Option<ArchiveFile>>> = OnceLock::new();
    let opened = ARCHIVE.get_or_init(|| {
        // The launcher has checked the digest and says which archive it was; without it there is none to compare with.
        let (candidates, digest) = match std::env::var_os("SLIMLAMBDA_ARCHIVE") {
            Some(path) => (
                alloc::vec![path.into_vec()],
                std::env::var_os("SLIMLAMBDA_DIGEST").and_then(|d| parse_hex(d.as_bytes())),
            ),
            None => (
                directories()
                    .into_iter()
                    .map(|d| d.join(format::FILE_NAME).into_os_string().into_vec())
                    .collect(),
                None,
            ),
        };
        match ArchiveFile::open(&candidates, digest.as_ref()) {
            Ok(source) => Ok(Some(source)),
            Err(Error::NoArchive { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    });
    opened.as_ref().map(Option::as_ref).map_err(Clone::clone)
}

/// Where `path` is in the tree, after unpacking it and all below it; `None` if the archive does not have it.
fn unpacked(source: &ArchiveFile, path: &str) -> Result<Option<PathBuf>> {
    /// Trees in use by this process: kept for its whole life, as the paths handed out are.
    static HELD: Mutex<Vec<Tree>> = Mutex::new(Vec::new());

    let archive = &source.archive;
    let Some(number) = archive.find(path.as_bytes()) else {
        return Ok(None);
    };
    let entry = archive.entry(number);
    let below = |other: &[u8]| {
        other
            .strip_prefix(entry.path)
            .is_some_and(|rest| rest.first() == Some(&b'/'))
    };
    let lazy = entry.lazy || archive.entries().any(|e| e.lazy && below(e.path));
    if let Some(tree) = tree().filter(|_| !lazy) {
        return Ok(Some(tree.join(path)));
    }
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let options = Options::from_env(|name| std::env::var_os(name).map(OsStringExt::into_vec));
    let wanted = |n: usize| {
        let other = archive.entry(n).path;
        n == number
            || below(other)
            || entry
                .path
                .strip_prefix(other)
                .is_some_and(|rest| rest.first() == Some(&b'/'))
    };
    let tree = store::ensure(source, &options, wanted)?;
    let found = Path::new(std::ffi::OsStr::from_bytes(&tree.path)).join(path);
    if held.is_empty() {
        held.push(tree);
    }
    Ok(Some(found))
}
