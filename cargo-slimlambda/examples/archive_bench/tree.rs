//! Directory trees: their digest, by which every unpacked tree is compared with the original, and what is written so that it
//! is the same on every machine.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use rayon::prelude::*;

/// Every file's and directory's time of change, since zip and 7z keep it: 2020-01-01.
const CHANGED: Duration = Duration::from_secs(1_577_836_800);

/// What is in a tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Digest {
    /// Of paths and contents.
    pub contents: String,
    /// Of paths and modes.
    pub modes: String,
    /// Number of files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads all of a tree of directories and files.
pub fn digest(root: &Path) -> anyhow::Result<Digest> {
    let paths = files(root)?;
    let read: Vec<(blake3::Hash, u32, u64)> = paths
        .par_iter()
        .map(|path| {
            let bytes = fs::read(root.join(path))?;
            let mode = fs::metadata(root.join(path))?.mode() & 0o7777;
            Ok((blake3::hash(&bytes), mode, bytes.len() as u64))
        })
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("failed to read the files of `{}`", root.display()))?;
    let (mut contents, mut modes) = (blake3::Hasher::new(), blake3::Hasher::new());
    for (path, (hash, mode, _)) in paths.iter().zip(&read) {
        let path = path.as_os_str().as_encoded_bytes();
        for hasher in [&mut contents, &mut modes] {
            hasher.update(&(path.len() as u64).to_le_bytes());
            hasher.update(path);
        }
        contents.update(hash.as_bytes());
        modes.update(&mode.to_le_bytes());
    }
    Ok(Digest {
        contents: contents.finalize().to_string(),
        modes: modes.finalize().to_string(),
        files: paths.len(),
        bytes: read.iter().map(|(_, _, bytes)| bytes).sum(),
    })
}

/// The files' paths in a tree, sorted. Anything but files and directories is an error: no payload has it.
pub fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut out, mut pending) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = pending.pop() {
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("failed to list `{}`", directory.display()))?;
        for entry in entries {
            let entry =
                entry.with_context(|| format!("failed to list `{}`", directory.display()))?;
            let path = entry.path();
            let kind = entry
                .file_type()
                .with_context(|| format!("failed to look at `{}`", path.display()))?;
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                out.push(path.strip_prefix(root)?.to_owned());
            } else {
                bail!("`{}` is neither file nor directory", path.display());
            }
        }
    }
    out.sort();
    Ok(out)
}

/// Writes one file of a tree, with the directories above it.
pub fn write(path: &Path, bytes: &[u8], executable: bool) -> anyhow::Result<()> {
    let parent = path.parent().context("a file at the root")?;
    let mode = if executable { 0o755 } else { 0o644 };
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, bytes))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("failed to write `{}`", path.display()))
}

/// Gives everything below `directory`, and itself, one time of change.
pub fn settle(directory: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("failed to list `{}`", directory.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("failed to list `{}`", directory.display()))?
            .path();
        if path.is_dir() {
            settle(&path)?;
        } else {
            set_time(&path)?;
        }
    }
    set_time(directory)
}

fn set_time(path: &Path) -> anyhow::Result<()> {
    File::open(path)
        .and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH + CHANGED))
        .with_context(|| format!("failed to set the time of `{}`", path.display()))
}

/// Frees the space of a tree's files, which stay, without bytes. ext4 without a journal does not use an inode
/// again within minutes of its removal, and who creates files there then looks through all that were removed: 20,000 files take
/// 20 times as long. So nothing is removed on disk while something is still to be measured.
pub fn empty(root: &Path) -> anyhow::Result<()> {
    for path in files(root)? {
        let path = root.join(path);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(0))
            .with_context(|| format!("failed to empty `{}`", path.display()))?;
    }
    Ok(())
}

/// Removes a tree that may not be there.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}
