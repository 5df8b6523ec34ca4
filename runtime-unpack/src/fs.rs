//! File system steps that never follow a symlink: every path is walked from an open directory, component
//! by component, so that nothing which another process puts in the way can lead outside the root.

use crate::error::{Error, Result};
use crate::reader::parent;
use alloc::vec::Vec;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

/// Flags for opening a directory to work in.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens `path` (relative, no `..`) below `root` as a directory.
pub(crate) fn open_directory(
    root: BorrowedFd<'_>,
    path: &[u8],
) -> core::result::Result<OwnedFd, Errno> {
    let mut dir = rustix::fs::openat(root, ".", DIRECTORY, Mode::empty())?;
    for component in path.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
        dir = rustix::fs::openat(&dir, component, DIRECTORY, Mode::empty())?;
    }
    Ok(dir)
}

/// A place to create files from: keeps the directories that lead to the last path open, since neighbours come together.
pub(crate) struct Cursor<'r> {
    root: BorrowedFd<'r>,
    /// Path of the directory that is current, and where its open part ends in it for each open directory.
    path: Vec<u8>,
    open: Vec<(usize, OwnedFd)>,
}

/// Directories that a cursor keeps open: some environments have very few descriptors.
const MAX_OPEN: usize = 3;

impl<'r> Cursor<'r> {
    pub(crate) fn new(root: BorrowedFd<'r>) -> Self {
        Cursor {
            root,
            path: Vec::new(),
            open: Vec::new(),
        }
    }

    /// The open directory that holds `path`, and the path's last component.
    pub(crate) fn at<'p>(&mut self, path: &'p [u8]) -> Result<(BorrowedFd<'_>, &'p [u8])> {
        let directory = parent(path).unwrap_or_default();
        let name = if directory.is_empty() {
            path
        } else {
            &path[directory.len() + 1..]
        };
        if self.path != directory || (self.open.is_empty() && !directory.is_empty()) {
            self.enter(directory)
                .map_err(|e| Error::io("open directory", directory, e))?;
        }
        match self.open.last() {
            Some((_, fd)) => Ok((fd.as_fd(), name)),
            None => Ok((self.root, name)),
        }
    }

    /// Opens `directory`, from the nearest directory above it that is open.
    fn enter(&mut self, directory: &[u8]) -> core::result::Result<(), Errno> {
        let leads_there = |end: usize, path: &[u8]| {
            directory.len() >= end
                && directory[..end] == path[..end]
                && matches!(directory.get(end), None | Some(b'/'))
        };
        while let Some((end, _)) = self.open.last()
            && !leads_there(*end, &self.path)
        {
            self.open.pop();
        }
        let mut at = self.open.last().map_or(0, |(end, _)| *end);
        self.path.clear();
        self.path.extend_from_slice(directory);
        while at < directory.len() {
            let start = if at == 0 { 0 } else { at + 1 };
            let rest = &directory[start..];
            let size = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
            let above = self.open.last().map_or(self.root, |(_, fd)| fd.as_fd());
            let opened = rustix::fs::openat(above, &rest[..size], DIRECTORY, Mode::empty());
            let opened = opened.inspect_err(|_| self.open.clear())?;
            if self.open.len() == MAX_OPEN {
                self.open.remove(0);
            }
            at = start + size;
            self.open.push((at, opened));
        }
        Ok(())
    }

    /// What is at `path`, without following a symlink; `None` if nothing is.
    pub(crate) fn stat(&mut self, path: &[u8]) -> Result<Option<Stat>> {
        let (dir, name) = match self.at(path) {
            Ok(found) => found,
            // The directory is missing, or something else stands in its place.
            Err(Error::Io {
                errno: Errno::NOENT | Errno::NOTDIR | Errno::LOOP,
                ..
            }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io("inspect", path, errno)),
        }
    }
}

/// Creates directory `path` below `root`; one that is there already is as good, anything else there is removed.
pub(crate) fn make_directory(cursor: &mut Cursor<'_>, path: &[u8]) -> Result<()> {
    let (dir, name) = cursor.at(path)?;
    loop {
        match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| Error::io("inspect", path, e))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    return Ok(());
                }
                rustix::fs::unlinkat(dir, name, AtFlags::empty())
                    .map_err(|e| Error::io("replace", path, e))?;
            }
            Err(errno) => return Err(Error::io("create directory", path, errno)),
        }
    }
}

/// Removes `name` in `dir`, with all below it, following no symlink. Nothing there is success.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> core::result::Result<(), Errno> {
    // Whether there is nothing of that name any more; a directory stays.
    let unlink = |dir: BorrowedFd<'_>, name: &[u8]| match rustix::fs::unlinkat(
        dir,
        name,
        AtFlags::empty(),
    ) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(errno) => Err(errno),
    };
    if unlink(dir, name)? {
        return Ok(());
    }
    // Paths, not recursion: however deep the tree is, three descriptors do.
    let mut pending = alloc::vec![name.to_vec()];
    while let Some(path) = pending.last().cloned() {
        let inner = open_directory(dir, &path)?;
        // Names first, then removal: a directory must not change while it is read.
        let names = names(inner.as_fd())?;
        let before = pending.len();
        for name in names {
            if !unlink(inner.as_fd(), &name)? {
                pending.push([&path, b"/".as_slice(), &name].concat());
            }
        }
        if pending.len() == before {
            let above = parent(&path).unwrap_or_default();
            let last = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
            rustix::fs::unlinkat(open_directory(dir, above)?, last, AtFlags::REMOVEDIR)?;
            pending.pop();
        }
    }
    Ok(())
}

/// The names in a directory.
pub(crate) fn names(dir: BorrowedFd<'_>) -> core::result::Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Renames without replacing anything, where the kernel can promise that.
pub(crate) fn rename_new(
    from_dir: BorrowedFd<'_>,
    from: &[u8],
    to_dir: BorrowedFd<'_>,
    to: &[u8],
) -> core::result::Result<(), Errno> {
    match rustix::fs::renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
            rustix::fs::renameat(from_dir, from, to_dir, to)
        }
        other => other,
    }
}

/// Reads exactly `out.len()` bytes at `offset`, whatever signals and short reads come.
pub(crate) fn pread_exact(
    file: impl AsFd,
    mut out: &mut [u8],
    mut offset: u64,
) -> core::result::Result<(), Errno> {
    while !out.is_empty() {
        match rustix::io::pread(&file, &mut *out, offset) {
            Ok(0) => return Err(Errno::IO), // shorter than its own size: truncated underneath us
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Writes all of `bytes` at `offset`, whatever signals and short writes come.
pub(crate) fn pwrite_all(
    file: impl AsFd,
    mut bytes: &[u8],
    mut offset: u64,
) -> core::result::Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&file, bytes, offset) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
