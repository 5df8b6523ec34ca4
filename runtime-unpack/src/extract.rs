//! Archive → files in a directory that others may use too: what `cargo slimlambda archive extract` does.
//!
//! Frames are decoded, verified and written by the code that launchers run, into a stage of our own below the destination.
//! Only when everything is there does it move to its place, by rename, whole directories at once where nothing is in the
//! way. So a failure up to then leaves the destination as it was, and nobody ever sees half a file.

use crate::error::{Error, Result};
use crate::format::Kind;
use crate::fs::{Cursor, open_directory, remove_tree, rename_new};
use crate::reader::{Archive, parent};
use crate::source::ArchiveFile;
use crate::unpack::{self, Progress, Selection};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

/// Something at the destination that has an entry's path and is not a directory for a directory's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Obstacle {
    /// Number of the entry.
    pub entry: usize,
    /// Whether it is a directory, which [`extract`] never replaces: nobody knows what is in it.
    pub is_directory: bool,
}

/// What becomes of files and symlinks that are at the destination already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// They stay, and the extraction fails.
    Keep,
    /// They are replaced by rename: whoever has an old file open keeps it whole.
    Replace,
}

/// What an extraction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extracted {
    /// Frames that it took.
    pub frames: usize,
    /// Threads that did it.
    pub threads: usize,
}

/// An extraction that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// Files, symlinks and whole directories that are in their places nevertheless; usually none.
    pub placed: usize,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error, placed: 0 }
    }
}

/// What `destination` has in the way of the entries that `wanted` picks and of the directories that lead to them.
///
/// # Errors
/// The destination cannot be read.
pub fn obstacles(
    archive: &Archive,
    wanted: impl Fn(usize) -> bool,
    destination: BorrowedFd<'_>,
) -> Result<Vec<Obstacle>> {
    let wanted = with_parents(archive, wanted);
    let mut cursor = Cursor::new(destination);
    let mut absent = alloc::vec![false; archive.len()];
    let mut out = Vec::new();
    for number in (0..archive.len()).filter(|n| wanted[*n]) {
        let entry = archive.entry(number);
        // Nothing is below what is not there.
        let found = match above(archive, entry.path) {
            Some(directory) if absent[directory] => None,
            _ => cursor.stat(entry.path)?,
        };
        let is_directory =
            found.map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        match is_directory {
            None => absent[number] = true,
            Some(true) if entry.kind == Kind::Directory => {}
            Some(is_directory) => out.push(Obstacle {
                entry: number,
                is_directory,
            }),
        }
    }
    Ok(out)
}

/// Extracts the entries that `wanted` picks, and the directories that lead to them, into the directory `destination`.
///
/// No symlink below the destination is followed, whoever puts it there and whenever. Files get the mode that the archive
/// has for them.
///
/// # Errors
/// A damaged frame, an [`Obstacle`] that is to stay, or a failed system call; [`Failed`] says what is there then.
pub fn extract(
    source: &ArchiveFile,
    wanted: impl Fn(usize) -> bool,
    destination: BorrowedFd<'_>,
    threads: usize,
    existing: Existing,
) -> core::result::Result<Extracted, Failed> {
    let wanted = with_parents(&source.archive, wanted);
    let (name, stage) = new_stage(destination)?;
    let result = fill(source, wanted, stage, destination, threads, existing);
    let removed = remove_tree(destination, &name).map_err(|e| Error::io("remove", &name, e));
    let extracted = result?;
    removed?;
    Ok(extracted)
}

fn fill(
    source: &ArchiveFile,
    wanted: Vec<bool>,
    stage: OwnedFd,
    destination: BorrowedFd<'_>,
    threads: usize,
    existing: Existing,
) -> core::result::Result<Extracted, Failed> {
    const TREE: &[u8] = b"tree";
    let selection = Selection::new(&source.archive, wanted);
    let mut progress = Progress::create(stage.as_fd(), b"progress", &selection)?;
    rustix::fs::mkdirat(&stage, TREE, Mode::from_raw_mode(0o755))
        .map_err(|e| Error::io("create directory", TREE, e))?;
    let tree =
        open_directory(stage.as_fd(), TREE).map_err(|e| Error::io("open directory", TREE, e))?;
    let counts = unpack::unpack(source, &selection, tree.as_fd(), &mut progress, threads)?;
    let mut placed = 0;
    place(
        &source.archive,
        &selection.wanted,
        [tree.as_fd(), destination],
        existing,
        &mut placed,
    )
    .map_err(|error| Failed { error, placed })?;
    Ok(Extracted {
        frames: counts.frames,
        threads: counts.threads,
    })
}

/// Moves what is wanted from one directory into the other; counts the renames.
fn place(
    archive: &Archive,
    wanted: &[bool],
    [from, to]: [BorrowedFd<'_>; 2],
    existing: Existing,
    placed: &mut usize,
) -> Result<()> {
    let (mut from, mut to) = (Cursor::new(from), Cursor::new(to));
    let mut moved = alloc::vec![false; archive.len()];
    for number in (0..archive.len()).filter(|n| wanted[*n]) {
        let entry = archive.entry(number);
        if above(archive, entry.path).is_some_and(|directory| moved[directory]) {
            moved[number] = true; // along with it
            continue;
        }
        let is_directory = entry.kind == Kind::Directory;
        let there = to
            .stat(entry.path)?
            .map(|stat| FileType::from_raw_mode(stat.st_mode));
        let (from_dir, name) = from.at(entry.path)?;
        let (to_dir, _) = to.at(entry.path)?;
        let done = match (there, existing) {
            (Some(FileType::Directory), _) if is_directory => continue,
            (Some(_), Existing::Keep) => Err(Errno::EXIST),
            (Some(_), Existing::Replace) if is_directory => {
                rustix::fs::unlinkat(to_dir, name, AtFlags::empty())
                    .and_then(|()| rename_new(from_dir, name, to_dir, name))
            }
            (Some(_), Existing::Replace) => rustix::fs::renameat(from_dir, name, to_dir, name),
            (None, _) => rename_new(from_dir, name, to_dir, name),
        };
        done.map_err(|e| Error::io("create", entry.path, e))?;
        moved[number] = true;
        *placed += 1;
    }
    Ok(())
}

/// A new directory for nobody but us.
fn new_stage(destination: BorrowedFd<'_>) -> Result<(Vec<u8>, OwnedFd)> {
    let mut number = 0;
    loop {
        let name = format!(".slimlambda-{}-{number}", std::process::id());
        let fail = |errno| Error::io("create directory", name.as_bytes(), errno);
        match rustix::fs::mkdirat(destination, name.as_str(), Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                let stage = open_directory(destination, name.as_bytes()).map_err(fail)?;
                return Ok((String::into_bytes(name), stage));
            }
            Err(Errno::EXIST) => number += 1, // left by a process that was killed
            Err(errno) => return Err(fail(errno)),
        }
    }
}

fn with_parents(archive: &Archive, wanted: impl Fn(usize) -> bool) -> Vec<bool> {
    let mut wanted: Vec<bool> = (0..archive.len()).map(wanted).collect();
    unpack::add_parents(archive, &mut wanted);
    wanted
}

/// Number of the directory that holds `path`.
fn above(archive: &Archive, path: &[u8]) -> Option<usize> {
    archive.find(parent(path)?)
}
