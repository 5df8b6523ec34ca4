//! Directory → everything below it, as an archive can hold it; whatever it cannot hold is an error that names it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use runtime_unpack::format;

use crate::pack::archive::{Input, InputContent};
use crate::tree::Bytes;

/// Bytes from which a file is mapped: a process has 65,530 mappings (`vm.max_map_count`), and small files come in
/// greater numbers.
const MAP_FROM: u64 = 1 << 16;

/// What is at one path below the directory.
#[derive(Debug)]
pub struct Found {
    /// Relative path, `/`-separated.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// File, symlink or directory.
    pub content: Content,
}

/// File, symlink or directory.
#[derive(Debug)]
pub enum Content {
    /// A file's bytes.
    File(Bytes),
    /// A symlink's target, as the format spells it.
    Symlink(String),
    /// A directory.
    Directory,
}

impl Found {
    /// The same for the packer.
    pub fn input(&self) -> Input<'_> {
        Input {
            path: &self.path,
            mode: self.mode,
            lazy: false,
            content: match &self.content {
                Content::File(bytes) => InputContent::File(bytes),
                Content::Symlink(target) => InputContent::Symlink(target),
                Content::Directory => InputContent::Directory,
            },
        }
    }
}

/// Everything below `root`, sorted by path.
pub fn walk(root: &Path) -> anyhow::Result<Vec<Found>> {
    let mut out = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(directory) = pending.pop() {
        let place = root.join(&directory);
        let failed = || format!("failed to read directory `{}`", place.display());
        for entry in fs::read_dir(&place).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                bail!("the name of `{}` is not UTF-8", entry.path().display());
            };
            let path = match directory.as_str() {
                "" => name.to_string(),
                above => format!("{above}/{name}"),
            };
            let found = found(&entry.path(), path)?;
            if let Content::Directory = found.content {
                pending.push(found.path.clone());
            }
            out.push(found);
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

fn found(place: &Path, path: String) -> anyhow::Result<Found> {
    let failed = || format!("failed to read `{}`", place.display());
    if let Some(fault) = format::path_fault(path.as_bytes()) {
        bail!("`{}` cannot be packed: its path {fault}", place.display());
    }
    let metadata = fs::symlink_metadata(place).with_context(failed)?;
    let kind = metadata.file_type();
    let content = if kind.is_dir() {
        Content::Directory
    } else if kind.is_symlink() {
        Content::Symlink(target(place, &path)?)
    } else if !kind.is_file() {
        bail!(
            "`{}` cannot be packed: it is neither a file, a directory nor a symlink",
            place.display()
        );
    } else if metadata.len() < MAP_FROM {
        Content::File(Bytes::Owned(fs::read(place).with_context(failed)?))
    } else {
        Content::File(Bytes::map(place)?)
    };
    Ok(Found {
        path,
        mode: metadata.permissions().mode() & 0o777,
        content,
    })
}

/// The target of the symlink at `place`. `./a//b/` is said as `a/b`, which leads to the same.
fn target(place: &Path, path: &str) -> anyhow::Result<String> {
    let target =
        fs::read_link(place).with_context(|| format!("failed to read `{}`", place.display()))?;
    let refused = |fault: &str| {
        format!(
            "symlink `{}` → `{}` cannot be packed: it {fault}\nhelp: remove it, or replace it by what it points at",
            place.display(),
            target.display()
        )
    };
    let Some(text) = target.to_str() else {
        bail!(refused("is not UTF-8"));
    };
    let parts: Vec<&str> = text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    let plain = parts.join("/");
    if text.starts_with('/') {
        bail!(refused("is absolute"));
    }
    match format::target_fault(path.as_bytes(), plain.as_bytes()) {
        Some(fault) => bail!(refused(fault)),
        None => Ok(plain),
    }
}
