//! Files of the package by name, wherever they were placed; lazy ones are unpacked on first use.

use crate::error::{Error, Result};
use crate::format::{self, Kind, parse_hex};
use crate::reader::{Archive, Entry};
use crate::source::ArchiveFile;
use crate::store::{self, Options, Tree};
use alloc::collections::BTreeSet;
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
/// 3. in `CARGO_MANIFEST_DIR`, so that `cargo run` and `cargo test` find assets whose `dest` is their path in the sources.
///
/// # Errors
/// [`Error::NoAsset`] naming the places searched; [`Error::Split`]; whatever unpacking can fail with.
pub fn asset(path: &str) -> Result<PathBuf> {
    if let Some(source) = archive()?
        && let Some(found) = unpacked(source, path)?
    {
        let packaged = || task_root().is_some_and(|root| root.join(path).is_dir());
        return match found.is_dir() && packaged() {
            true => Err(Error::Split { path: path.into() }),
            false => Ok(found),
        };
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
    let wanted = parts(archive, path.as_bytes());
    if !wanted.contains(&true) {
        return Ok(None);
    }
    let lazy = (0..archive.len()).any(|n| wanted[n] && archive.entry(n).lazy);
    let root = match tree().filter(|_| !lazy) {
        Some(root) => root,
        None => {
            let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
            let options =
                Options::from_env(|name| std::env::var_os(name).map(OsStringExt::into_vec));
            let tree = store::ensure(source, &options, |n| wanted[n])?;
            let root = PathBuf::from(std::ffi::OsString::from_vec(tree.path.clone()));
            if held.is_empty() {
                held.push(tree);
            }
            root
        }
    };
    Ok(Some(root.join(path)).filter(|found| found.exists()))
}

/// By entry: whether it is part of what is at `path`. That is the entry, all below it, and what the symlinks among
/// these and on the way there lead to.
fn parts(archive: &Archive, path: &[u8]) -> Vec<bool> {
    let mut wanted = alloc::vec![false; archive.len()];
    let mut seen = BTreeSet::new();
    let mut paths = alloc::vec![path.to_vec()];
    while let Some(path) = paths.pop() {
        // Symlinks may lead in circles, and through longer and longer paths.
        if path.len() > format::MAX_PATH || !seen.insert(path.clone()) {
            continue;
        }
        for (number, entry) in archive.entries().enumerate() {
            let below = strip_directory(entry.path, &path).is_some();
            let on_the_way = strip_directory(&path, entry.path);
            let is_link = matches!(entry.kind, Kind::Symlink { .. });
            if entry.path == path || below || (is_link && on_the_way.is_some()) {
                wanted[number] = true;
                if is_link {
                    paths.push(follow(&entry, on_the_way));
                }
            }
        }
    }
    wanted
}

/// What is left of `path` below `directory`.
fn strip_directory<'p>(path: &'p [u8], directory: &[u8]) -> Option<&'p [u8]> {
    path.strip_prefix(directory)?.strip_prefix(b"/")
}

/// Where a symlink leads, and from there on `rest`. Its `..` come first and do not leave the root: the format sees to it.
fn follow(link: &Entry<'_>, rest: Option<&[u8]>) -> Vec<u8> {
    let mut out: Vec<&[u8]> = link.path.split(|b| *b == b'/').collect();
    out.pop();
    for component in link.target.split(|b| *b == b'/') {
        match component {
            b".." => _ = out.pop(),
            name => out.push(name),
        }
    }
    out.extend(rest);
    out.join(&b'/')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_lead_on() {
        let link = |path: &'static str, target: &'static str, rest: Option<&'static str>| {
            let entry = Entry {
                path: path.as_bytes(),
                kind: Kind::Symlink { target: 0 },
                target: target.as_bytes(),
                mode: 0o777,
                lazy: false,
            };
            String::from_utf8(follow(&entry, rest.map(str::as_bytes))).unwrap()
        };
        assert_eq!(link("lib/a.so", "a.so.1", None), "lib/a.so.1");
        assert_eq!(link("a/b/c", "../../d", None), "d");
        assert_eq!(link("current", "v/2", Some("model/x")), "v/2/model/x");
    }
}
