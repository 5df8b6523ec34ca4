//! Archive → files: frames are decoded by all cores at once, each verified while it is in cache, then written.
//!
//! Everything is created below one open directory, the *stage*, that nobody else uses (the store holds the lock). A frame
//! whose bytes are all written is marked as done in the progress file, so that a killed process loses the
//! frames it was at and no more. No `fsync`: what must survive is the death of a process, and the page cache does.

use crate::error::{Error, Result};
use crate::format::{self, Digest, Kind};
use crate::fs::{Cursor, make_directory, pwrite_all};
use crate::reader::{Archive, Piece};
use crate::source::ArchiveFile;
use crate::sys;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

const WRITE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Which entries to unpack, and what each frame has to do with them.
pub(crate) struct Selection<'a> {
    archive: &'a Archive,
    /// By entry: unpack it.
    pub(crate) wanted: Vec<bool>,
    /// By blob: the wanted entries that it is the content of.
    by_blob: Vec<Vec<u32>>,
    /// By frame: the runs of it that are wanted.
    pieces: Vec<Vec<Piece>>,
}

impl<'a> Selection<'a> {
    pub(crate) fn new(archive: &'a Archive, wanted: Vec<bool>) -> Self {
        let mut by_blob = alloc::vec![Vec::new(); archive.blobs().len()];
        for (number, entry) in archive.entries().enumerate().filter(|(n, _)| wanted[*n]) {
            if let Kind::File { blob } = entry.kind {
                by_blob[blob as usize].push(number as u32);
            }
        }
        let mut pieces = archive.pieces();
        for pieces in &mut pieces {
            pieces.retain(|p| !by_blob[p.blob as usize].is_empty());
        }
        Selection {
            archive,
            wanted,
            by_blob,
            pieces,
        }
    }

    /// Bytes that the wanted files take, in blocks of 4 KiB as file systems count them: less will not do.
    pub(crate) fn disk_size(&self) -> u64 {
        let files = self.archive.blobs().iter().zip(&self.by_blob);
        files
            .map(|(blob, entries)| {
                let size = blob.size.next_multiple_of(4096); // at most 2^49: all frames together
                size.saturating_mul(entries.len() as u64)
            })
            .fold(0, u64::saturating_add)
    }

    /// Tells this selection from every other of the same archive.
    fn key(&self) -> Digest {
        let wanted: Vec<u8> = self.wanted.iter().map(|w| u8::from(*w)).collect();
        format::digest(&wanted)
    }

    /// Whether this piece is all of its blob.
    fn is_whole(&self, piece: &Piece) -> bool {
        u64::from(piece.len) == self.archive.blobs()[piece.blob as usize].size
    }
}

/// What is done of a selection, in a file that outlives the process: the selection's key, then one byte a frame.
///
/// The key is what makes a stage worth resuming. What was staged for another selection must not get into the tree: a
/// file that is there in parts alone has the right size already.
pub(crate) struct Progress {
    file: OwnedFd,
    path: Vec<u8>,
    done: Vec<bool>,
}

impl Progress {
    /// The progress of an earlier try at this very selection, if `name` in `dir` is that.
    pub(crate) fn resume(
        dir: BorrowedFd<'_>,
        name: &[u8],
        selection: &Selection<'_>,
    ) -> Result<Option<Progress>> {
        let fail = |errno| Error::io("read progress from", name, errno);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR) => return Ok(None),
            other => other.map_err(fail)?,
        };
        let key = selection.key();
        let mut bytes = alloc::vec![0; key.len() + selection.pieces.len()];
        if rustix::fs::fstat(&file).map_err(fail)?.st_size as u64 != bytes.len() as u64 {
            return Ok(None);
        }
        crate::fs::pread_exact(&file, &mut bytes, 0).map_err(fail)?;
        let done = bytes.split_off(key.len());
        Ok((bytes == key).then(|| Progress {
            file,
            path: name.to_vec(),
            done: done.iter().map(|b| *b == 1).collect(),
        }))
    }

    /// No progress yet. Written out in full, so that marking a frame later takes no more space.
    pub(crate) fn create(
        dir: BorrowedFd<'_>,
        name: &[u8],
        selection: &Selection<'_>,
    ) -> Result<Progress> {
        let fail = |errno| Error::io("keep progress in", name, errno);
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(dir, name, WRITE | OFlags::EXCL, mode).map_err(fail)?;
        let done = alloc::vec![false; selection.pieces.len()];
        let mut bytes = selection.key().to_vec();
        bytes.resize(bytes.len() + done.len(), 0);
        pwrite_all(&file, &bytes, 0).map_err(fail)?;
        Ok(Progress {
            file,
            path: name.to_vec(),
            done,
        })
    }

    fn write(&self, frame: usize, state: u8) -> Result<()> {
        let offset = size_of::<Digest>() + frame;
        pwrite_all(&self.file, &[state], offset as u64)
            .map_err(|e| Error::io("keep progress in", &self.path, e))
    }

    fn mark(&self, frame: usize) -> Result<()> {
        self.write(frame, 1)
    }

    fn unmark(&mut self, frame: usize) -> Result<()> {
        self.done[frame] = false;
        self.write(frame, 0)
    }
}

/// Counts of what was done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) threads: usize,
    pub(crate) frames: usize,
    pub(crate) packed: u64,
    pub(crate) unpacked: u64,
}

/// Unpacks the selection below `stage`, skipping the frames that `progress` says are done.
pub(crate) fn unpack(
    source: &ArchiveFile,
    selection: &Selection<'_>,
    stage: BorrowedFd<'_>,
    progress: &mut Progress,
    threads: usize,
) -> Result<Counts> {
    forget_damaged(selection, stage, progress)?;
    let progress = &*progress;
    let todo: Vec<usize> = (0..selection.pieces.len())
        .filter(|n| !selection.pieces[*n].is_empty() && !progress.done[*n])
        .collect();

    let mut cursor = Cursor::new(stage);
    for (_, entry) in wanted(selection) {
        match entry.kind {
            Kind::Directory => make_directory(&mut cursor, entry.path)?,
            // No frame holds a byte of it, so nobody else would create it.
            Kind::File { blob } if source.archive.blobs()[blob as usize].size == 0 => {
                write_whole(&mut cursor, entry.path, entry.mode, &[])?
            }
            _ => {}
        }
    }
    drop(cursor);

    let threads = threads.clamp(1, todo.len().max(1));
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let results = sys::parallel(threads, |_| {
        let result = work(source, selection, stage, progress, &todo, &next, &failed);
        if result.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
        result
    });
    for result in results {
        result?;
    }
    finish(selection, stage)?;
    let frames = source.archive.frames();
    Ok(Counts {
        threads,
        frames: todo.len(),
        packed: todo.iter().map(|n| u64::from(frames[*n].packed)).sum(),
        unpacked: todo.iter().map(|n| u64::from(frames[*n].unpacked)).sum(),
    })
}

fn wanted<'s>(
    selection: &'s Selection<'_>,
) -> impl Iterator<Item = (usize, crate::reader::Entry<'s>)> {
    selection
        .archive
        .entries()
        .enumerate()
        .filter(|(n, _)| selection.wanted[*n])
}

/// One thread's share: takes frame after frame until none is left or another thread failed.
fn work(
    source: &ArchiveFile,
    selection: &Selection<'_>,
    stage: BorrowedFd<'_>,
    progress: &Progress,
    todo: &[usize],
    next: &AtomicUsize,
    failed: &AtomicBool,
) -> Result<()> {
    let mut cursor = Cursor::new(stage);
    let (mut packed, mut content) = (Vec::new(), Vec::new());
    while !failed.load(Ordering::Relaxed)
        && let Some(&frame) = todo.get(next.fetch_add(1, Ordering::Relaxed))
    {
        source.read_frame(frame, &mut packed, &mut content)?;
        for piece in &selection.pieces[frame] {
            let bytes = &content[piece.frame_offset as usize..][..piece.len as usize];
            for &number in &selection.by_blob[piece.blob as usize] {
                let entry = selection.archive.entry(number as usize);
                if selection.is_whole(piece) {
                    write_whole(&mut cursor, entry.path, entry.mode, bytes)?;
                } else {
                    write_part(&mut cursor, entry.path, bytes, piece.blob_offset)?;
                }
            }
        }
        progress.mark(frame)?;
    }
    Ok(())
}

/// Creates a file with all its bytes and its final mode.
fn write_whole(cursor: &mut Cursor<'_>, path: &[u8], mode: u16, bytes: &[u8]) -> Result<()> {
    let (dir, name) = cursor.at(path)?;
    let mode = Mode::from_raw_mode(mode.into());
    let file = loop {
        match rustix::fs::openat(dir, name, WRITE | OFlags::EXCL, mode) {
            Ok(file) => break file,
            // Left by a process that was killed before it marked the frame.
            Err(Errno::EXIST) => {
                crate::fs::remove_tree(dir, name).map_err(|e| Error::io("replace", path, e))?
            }
            Err(errno) => return Err(Error::io("create", path, errno)),
        }
    };
    pwrite_all(&file, bytes, 0).map_err(|e| Error::io("write", path, e))?;
    rustix::fs::fchmod(&file, mode).map_err(|e| Error::io("set the mode of", path, e)) // the umask may have taken bits away
}

/// Writes a part of a file that several frames, and so several threads, share.
fn write_part(cursor: &mut Cursor<'_>, path: &[u8], bytes: &[u8], offset: u64) -> Result<()> {
    let (dir, name) = cursor.at(path)?;
    // Writable until all parts are there; `finish` sets the entry's mode.
    let file = rustix::fs::openat(dir, name, WRITE, Mode::from_raw_mode(0o600))
        .map_err(|e| Error::io("create", path, e))?;
    pwrite_all(&file, bytes, offset).map_err(|e| Error::io("write", path, e))
}

/// Modes of the files in parts, and symlinks last: until then no path below the stage leads through one.
fn finish(selection: &Selection<'_>, stage: BorrowedFd<'_>) -> Result<()> {
    let mut in_parts = alloc::vec![false; selection.by_blob.len()];
    for piece in selection.pieces.iter().flatten() {
        in_parts[piece.blob as usize] |= !selection.is_whole(piece);
    }
    let mut cursor = Cursor::new(stage);
    for (_, entry) in wanted(selection) {
        match entry.kind {
            Kind::File { blob } if in_parts[blob as usize] => {
                let (dir, name) = cursor.at(entry.path)?;
                rustix::fs::chmodat(
                    dir,
                    name,
                    Mode::from_raw_mode(entry.mode.into()),
                    AtFlags::empty(),
                )
                .map_err(|e| Error::io("set the mode of", entry.path, e))?;
            }
            Kind::Symlink { .. } => {
                let (dir, name) = cursor.at(entry.path)?;
                match rustix::fs::symlinkat(entry.target, dir, name) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => {
                        rustix::fs::unlinkat(dir, name, AtFlags::empty())
                            .and_then(|()| rustix::fs::symlinkat(entry.target, dir, name))
                            .map_err(|e| Error::io("replace", entry.path, e))?;
                    }
                    Err(errno) => return Err(Error::io("create symlink", entry.path, errno)),
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Progress is only worth something while the files it speaks of are there: a frame whose bytes cannot all be
/// in the stage any more is to be done again.
fn forget_damaged(
    selection: &Selection<'_>,
    stage: BorrowedFd<'_>,
    progress: &mut Progress,
) -> Result<()> {
    let mut reach = alloc::vec![0u64; selection.by_blob.len()];
    for (_, pieces) in selection
        .pieces
        .iter()
        .enumerate()
        .filter(|(n, _)| progress.done[*n])
    {
        for piece in pieces {
            let end = piece.blob_offset + u64::from(piece.len);
            reach[piece.blob as usize] = reach[piece.blob as usize].max(end);
        }
    }
    let mut cursor = Cursor::new(stage);
    let mut damaged = alloc::vec![false; reach.len()];
    for (blob, reach) in reach.iter().enumerate().filter(|(_, reach)| **reach > 0) {
        let size = selection.archive.blobs()[blob].size;
        let paths = selection.by_blob[blob].iter();
        let paths = paths.map(|&number| selection.archive.entry(number as usize).path);
        for path in paths.clone() {
            damaged[blob] |= !cursor.stat(path)?.is_some_and(|s| {
                FileType::from_raw_mode(s.st_mode) == FileType::RegularFile
                    && (*reach..=size).contains(&(s.st_size as u64))
            });
        }
        // All of its files go: one that has its final mode already could not be written again.
        for path in paths.filter(|_| damaged[blob]) {
            if cursor.stat(path)?.is_some() {
                let (dir, name) = cursor.at(path)?;
                crate::fs::remove_tree(dir, name).map_err(|e| Error::io("remove", path, e))?;
            }
        }
    }
    for (frame, pieces) in selection.pieces.iter().enumerate() {
        if progress.done[frame] && pieces.iter().any(|p| damaged[p.blob as usize]) {
            progress.unmark(frame)?;
        }
    }
    Ok(())
}

/// Moves everything selected from the stage into a tree that is already in use: each by rename, so that whoever has the
/// old file open or mapped keeps it whole.
pub(crate) fn move_into(
    selection: &Selection<'_>,
    stage: BorrowedFd<'_>,
    tree: BorrowedFd<'_>,
) -> Result<()> {
    let (mut from, mut to) = (Cursor::new(stage), Cursor::new(tree));
    for (_, entry) in wanted(selection) {
        if entry.kind == Kind::Directory {
            make_directory(&mut to, entry.path)?;
            continue;
        }
        let (from_dir, name) = from.at(entry.path)?;
        let (to_dir, _) = to.at(entry.path)?;
        let rename = || rustix::fs::renameat(from_dir, name, to_dir, name);
        let moved = match rename() {
            Err(Errno::ISDIR) => crate::fs::remove_tree(to_dir, name).and_then(|()| rename()),
            other => other,
        };
        moved.map_err(|e| Error::io("move into the tree", entry.path, e))?;
    }
    Ok(())
}

/// Which of the wanted entries `tree` does not have as they should be. With `verify`, contents are read and compared
/// with their digests; otherwise kind, size and mode speak for a file.
pub(crate) fn missing(
    archive: &Archive,
    wanted: &[bool],
    tree: BorrowedFd<'_>,
    verify: bool,
) -> Result<Vec<bool>> {
    let mut cursor = Cursor::new(tree);
    let mut out = alloc::vec![false; wanted.len()];
    for (number, entry) in archive.entries().enumerate().filter(|(n, _)| wanted[*n]) {
        let stat = cursor.stat(entry.path)?;
        let found = stat.map(|s| {
            (
                FileType::from_raw_mode(s.st_mode),
                s.st_size as u64,
                s.st_mode as u16 & 0o7777,
            )
        });
        out[number] = !match entry.kind {
            Kind::Directory => matches!(found, Some((FileType::Directory, ..))),
            Kind::File { blob } => {
                let blob = &archive.blobs()[blob as usize];
                found == Some((FileType::RegularFile, blob.size, entry.mode))
                    && (!verify || content_digest(&mut cursor, entry.path)? == blob.digest)
            }
            Kind::Symlink { .. } => {
                matches!(found, Some((FileType::Symlink, ..))) && {
                    let (dir, name) = cursor.at(entry.path)?;
                    rustix::fs::readlinkat(dir, name, Vec::new())
                        .is_ok_and(|t| t.as_bytes() == entry.target)
                }
            }
        };
    }
    Ok(out)
}

/// Adds the directories that lead to what is wanted.
pub(crate) fn add_parents(archive: &Archive, wanted: &mut [bool]) {
    for number in 0..wanted.len() {
        let mut path = archive.entry(number).path;
        while wanted[number]
            && let Some(above) = crate::reader::parent(path)
        {
            if let Some(n) = archive.find(above) {
                wanted[n] = true;
            }
            path = above;
        }
    }
}

fn content_digest(cursor: &mut Cursor<'_>, path: &[u8]) -> Result<crate::format::Digest> {
    let (dir, name) = cursor.at(path)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())
        .map_err(|e| Error::io("open", path, e))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = alloc::vec![0u8; 1 << 18];
    loop {
        match rustix::io::read(file.as_fd(), &mut buffer[..]) {
            Ok(0) => return Ok(*hasher.finalize().as_bytes()),
            Ok(n) => {
                hasher.update(&buffer[..n]);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("read", path, errno)),
        }
    }
}
