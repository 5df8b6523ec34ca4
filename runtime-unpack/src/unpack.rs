//! Archive → files: frames are verified, decoded by all cores at once, and written piece by piece.
//!
//! Memory: each thread has one frame's packed bytes and streams, and a few MiB for the filters; there are only as many threads
//! as [`MEMORY`] and [`MEMORY_PER_THREAD`] allow for. What is written goes from there to the page cache, a piece at a time.
//!
//! Everything is created below one open directory, the *stage*, that nobody else uses (the store holds the lock). A frame
//! whose bytes are all written is marked as done in the progress file, so that a killed process loses the
//! frames it was at and no more. No `fsync`: what must survive is the death of a process, and the page cache does.

use crate::error::{Error, Result};
use crate::filter::{Filter, Scratch};
use crate::format::{self, Digest, Kind};
use crate::fs::{Cursor, make_directory, pwrite_all};
use crate::reader::{self, Archive, Placed};
use crate::source::ArchiveFile;
use crate::sys;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Bytes of memory that unpacking may take, to begin with.
const MEMORY: u64 = 64 << 20;
/// Bytes more for each thread.
const MEMORY_PER_THREAD: u64 = 8 << 20;
/// What a thread needs beside its frame: the filters' tables, and a stack.
const THREAD: u64 = 6 << 20;

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
    /// By frame: what it holds, wanted or not; nothing if nothing of it is wanted.
    pieces: Vec<Vec<Placed>>,
}

impl<'a> Selection<'a> {
    pub(crate) fn new(archive: &'a Archive, wanted: Vec<bool>) -> Self {
        let mut by_blob = alloc::vec![Vec::new(); archive.blobs().len()];
        for (number, entry) in archive.entries().enumerate().filter(|(n, _)| wanted[*n]) {
            if let Kind::File { blob } = entry.kind {
                by_blob[blob as usize].push(number as u32);
            }
        }
        let mut pieces = archive.frame_pieces();
        for pieces in &mut pieces {
            if pieces.iter().all(|p| by_blob[p.blob as usize].is_empty()) {
                pieces.clear();
            }
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
        let mut sizes: Vec<u64> = self.archive.blobs().iter().map(|b| b.size).collect();
        for (_, piece) in self.archive.pieces() {
            if piece.filter == Filter::Hole {
                sizes[piece.blob as usize] -= u64::from(piece.size);
            }
        }
        let files = sizes.iter().zip(&self.by_blob);
        files
            .map(|(size, entries)| {
                size.next_multiple_of(4096)
                    .saturating_mul(entries.len() as u64)
            })
            .fold(0, u64::saturating_add)
    }

    /// Tells this selection from every other of the same archive.
    fn key(&self) -> Digest {
        let wanted: Vec<u8> = self.wanted.iter().map(|w| u8::from(*w)).collect();
        format::digest(&wanted)
    }

    /// Whether the files of this blob are written in one go, by whoever has their only piece.
    fn is_whole(&self, blob: u32, size: u32) -> bool {
        u64::from(size) == self.archive.blobs()[blob as usize].size
    }

    /// By blob: whether its files are written in parts, into files that are there from the beginning.
    fn in_parts(&self) -> Vec<bool> {
        let mut in_parts = alloc::vec![false; self.by_blob.len()];
        for (_, piece) in self.archive.pieces() {
            in_parts[piece.blob as usize] |=
                piece.filter == Filter::Hole || !self.is_whole(piece.blob, piece.size);
        }
        in_parts
    }

    /// As many threads as were asked for, if their frames fit into memory at once.
    fn threads(&self, asked: usize, todo: &[usize]) -> usize {
        let sizes = todo.iter().map(|frame| self.archive.frame_sizes(*frame));
        let mut needs: Vec<u64> = sizes
            .map(|(packed, unpacked)| packed + unpacked + THREAD)
            .collect();
        needs.sort_unstable_by(|a, b| b.cmp(a));
        let fits = |threads: &usize| {
            let need: u64 = needs.iter().take(*threads).sum();
            need <= MEMORY + MEMORY_PER_THREAD * *threads as u64
        };
        (1..=asked.min(todo.len())).rev().find(fits).unwrap_or(1)
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

    let in_parts = selection.in_parts();
    let mut cursor = Cursor::new(stage);
    for (_, entry) in wanted(selection) {
        match entry.kind {
            Kind::Directory => make_directory(&mut cursor, entry.path)?,
            Kind::File { blob } => match source.archive.blobs()[blob as usize].size {
                // No frame holds a byte of it, so nobody else would create it.
                0 => write_whole(&mut cursor, entry.path, entry.mode, &[])?,
                size if in_parts[blob as usize] => create_part(&mut cursor, entry.path, size)?,
                _ => {}
            },
            Kind::Symlink { .. } => {}
        }
    }
    drop(cursor);

    let threads = selection.threads(threads, &todo);
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
    finish(selection, stage, &in_parts)?;
    let sizes = todo.iter().map(|n| source.archive.frame_sizes(*n));
    let pieces = todo.iter().flat_map(|n| &selection.pieces[*n]);
    let wanted = pieces.filter(|p| !selection.by_blob[p.blob as usize].is_empty());
    Ok(Counts {
        threads,
        frames: todo.len(),
        packed: sizes.map(|(packed, _)| packed).sum(),
        unpacked: wanted.map(|p| u64::from(p.size)).sum(),
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
    let (mut packed, mut streams) = (Vec::new(), Vec::new());
    let mut scratch = Scratch::default();
    while !failed.load(Ordering::Relaxed)
        && let Some(&frame) = todo.get(next.fetch_add(1, Ordering::Relaxed))
    {
        source.read_frame(frame, &mut packed, &mut streams)?;
        // The file in parts that was last written to: pieces of one file come together.
        let mut open: Option<(u32, OwnedFd)> = None;
        reader::decode_pieces(
            frame,
            source.archive.streams(frame),
            &streams,
            &selection.pieces[frame],
            &mut scratch,
            |piece, bytes| {
                for &number in &selection.by_blob[piece.blob as usize] {
                    let entry = selection.archive.entry(number as usize);
                    if selection.is_whole(piece.blob, piece.size) {
                        write_whole(&mut cursor, entry.path, entry.mode, bytes)?;
                        continue;
                    }
                    let file = match &mut open {
                        Some((known, file)) if *known == number => file,
                        open => {
                            *open = None; // closed before the next is opened
                            &open.insert((number, open_part(&mut cursor, entry.path)?)).1
                        }
                    };
                    pwrite_all(file, bytes, piece.offset)
                        .map_err(|e| Error::io("write", entry.path, e))?;
                }
                Ok(())
            },
        )?;
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

/// Creates a file that is written in parts, in its full size; one that an earlier try left stays.
fn create_part(cursor: &mut Cursor<'_>, path: &[u8], size: u64) -> Result<()> {
    // It may have its final mode already, and so not be writable.
    if cursor.stat(path)?.is_some_and(|s| s.st_size as u64 == size) {
        return Ok(());
    }
    let file = open_part(cursor, path)?;
    rustix::fs::ftruncate(&file, size).map_err(|e| Error::io("set the size of", path, e))
}

/// Opens a file that several frames, and so several threads, write parts of.
fn open_part(cursor: &mut Cursor<'_>, path: &[u8]) -> Result<OwnedFd> {
    let (dir, name) = cursor.at(path)?;
    // Writable until all parts are there; `finish` sets the entry's mode.
    rustix::fs::openat(dir, name, WRITE, Mode::from_raw_mode(0o600))
        .map_err(|e| Error::io("create", path, e))
}

/// Modes of the files in parts, and symlinks last: until then no path below the stage leads through one.
fn finish(selection: &Selection<'_>, stage: BorrowedFd<'_>, in_parts: &[bool]) -> Result<()> {
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
    let mut held = alloc::vec![false; selection.by_blob.len()];
    for (frame, pieces) in selection.pieces.iter().enumerate() {
        for piece in pieces.iter().filter(|_| progress.done[frame]) {
            held[piece.blob as usize] = true;
        }
    }
    let mut cursor = Cursor::new(stage);
    let mut damaged = alloc::vec![false; held.len()];
    for (blob, _) in held.iter().enumerate().filter(|(_, held)| **held) {
        let size = selection.archive.blobs()[blob].size;
        let paths = selection.by_blob[blob].iter();
        let paths = paths.map(|&number| selection.archive.entry(number as usize).path);
        for path in paths.clone() {
            // A file in parts has its full size from the beginning.
            damaged[blob] |= !cursor.stat(path)?.is_some_and(|s| {
                FileType::from_raw_mode(s.st_mode) == FileType::RegularFile
                    && s.st_size as u64 == size
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
    if wanted.iter().all(|wanted| *wanted) {
        return;
    }
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
