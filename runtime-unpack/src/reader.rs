//! Bytes → [`Archive`]: every rule of the format is checked here, before anything acts on the index.
//!
//! Total: whatever the bytes, the answer is an archive or an error. No allocation is larger than what the
//! bytes present can account for.

use crate::error::{Error, Result};
use crate::format::{
    self, BLOB_SIZE, BLOCK_LOG2, Blob, Codec, Digest, ENTRY_SIZE, FLAG_LAZY, FRAME_SIZE, Frame,
    HEADER_SIZE, Header, Kind, MAGIC, MAX_COUNT, MAX_INDEX_SIZE, VERSION,
};
use alloc::vec::Vec;
use core::ops::Range;
use structured_zstd::decoding::{
    FrameContentSize, FrameDecoder, find_frame_compressed_size, read_frame_header_info,
};

/// Most an index may shrink by packing: bounds the allocation for it by the bytes present.
const MAX_INDEX_RATIO: u64 = 2_000;

/// An archive's index, checked.
#[derive(Debug)]
pub struct Archive {
    header: Header,
    entries: Vec<Record>,
    blobs: Vec<Blob>,
    frames: Vec<Frame>,
    /// Position of each frame in the file, and of the end.
    frame_offsets: Vec<u64>,
    index: Vec<u8>,
    launch: Range<usize>,
}

#[derive(Debug)]
struct Record {
    path: Range<usize>,
    target: Range<usize>,
    kind: Kind,
    mode: u16,
    lazy: bool,
}

/// One path of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Relative path, bytes as on disk.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Target of a symlink, empty otherwise.
    pub target: &'a [u8],
    /// Permission bits.
    pub mode: u16,
    /// Unpacked on first use instead of at start.
    pub lazy: bool,
}

/// A run of bytes that a frame holds of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Number of the blob.
    pub blob: u32,
    /// Where the run begins in the blob.
    pub blob_offset: u64,
    /// Where the run begins in the unpacked frame.
    pub frame_offset: u32,
    /// Bytes of the run.
    pub len: u32,
}

/// Reads the fixed-size header.
pub fn read_header(bytes: &[u8; HEADER_SIZE]) -> Result<Header> {
    if bytes[..8] != MAGIC {
        return Err(Error::Malformed(
            "it does not begin with the archive's magic bytes",
        ));
    }
    let version = u16_at(bytes, 8);
    if version != VERSION {
        return Err(Error::Version { needs: version });
    }
    let header = Header {
        block_log2: bytes[10],
        index_packed: u64_at(bytes, 16),
        index_unpacked: u64_at(bytes, 24),
        frames_packed: u64_at(bytes, 32),
        content_size: u64_at(bytes, 40),
        entries: u32_at(bytes, 48),
        blobs: u32_at(bytes, 52),
        frames: u32_at(bytes, 56),
        launch_size: u32_at(bytes, 60),
        index_digest: digest_at(bytes, 64),
    };
    if header.encode() != *bytes {
        return Err(Error::Malformed(
            "reserved bytes of the header are not zero",
        ));
    }
    if !BLOCK_LOG2.contains(&header.block_log2) {
        return Err(Error::Malformed("block size out of range"));
    }
    if header.entries > MAX_COUNT || header.blobs > MAX_COUNT || header.frames > MAX_COUNT {
        return Err(Error::Malformed(
            "more entries, blobs or frames than the format allows",
        ));
    }
    let tables = tables_size(&header);
    if header.index_unpacked < tables
        || header.index_unpacked > MAX_INDEX_SIZE
        || header.index_unpacked / MAX_INDEX_RATIO > header.index_packed
    {
        return Err(Error::Malformed("index size out of range"));
    }
    Ok(header)
}

fn tables_size(header: &Header) -> u64 {
    u64::from(header.entries) * ENTRY_SIZE as u64
        + u64::from(header.blobs) * BLOB_SIZE as u64
        + u64::from(header.frames) * FRAME_SIZE as u64
        + u64::from(header.launch_size)
}

/// Checks the packed index against the header and reads it.
///
/// `archive_size` is the size of the whole file: slack behind the last frame is refused.
pub fn read_index(header: Header, packed: &[u8], archive_size: u64) -> Result<Archive> {
    if packed.len() as u64 != header.index_packed || format::digest(packed) != header.index_digest {
        return Err(Error::Malformed("the index is not what its digest says"));
    }
    let whole = (HEADER_SIZE as u64)
        .checked_add(header.index_packed)
        .and_then(|n| n.checked_add(header.frames_packed));
    if whole != Some(archive_size) {
        return Err(Error::Malformed(
            "the file is longer or shorter than its header says",
        ));
    }
    let mut index = alloc::vec![0; header.index_unpacked as usize];
    unzstd(packed, &mut index).map_err(Error::Malformed)?;

    let mut at = 0;
    let mut take = |count: u32, size: usize| {
        let range = at..at + count as usize * size;
        at = range.end;
        range
    };
    let (entries, blobs, frames) = (
        take(header.entries, ENTRY_SIZE),
        take(header.blobs, BLOB_SIZE),
        take(header.frames, FRAME_SIZE),
    );
    let launch = take(header.launch_size, 1);
    let strings = at..index.len();

    let blobs: Vec<Blob> = index[blobs]
        .chunks_exact(BLOB_SIZE)
        .map(|r| Blob {
            size: u64_at(r, 0),
            digest: digest_at(r, 8),
        })
        .collect();
    let frames = index[frames]
        .chunks_exact(FRAME_SIZE)
        .map(|r| read_frame(r, &header))
        .collect::<Result<Vec<_>>>()?;
    let entries = read_entries(&index, entries, strings, header.blobs)?;
    let frame_offsets = frame_offsets(&header, &frames)?;
    check_content(&header, &blobs, &frames)?;
    let archive = Archive {
        header,
        entries,
        blobs,
        frames,
        frame_offsets,
        index,
        launch,
    };
    archive.check_tree()?;
    Ok(archive)
}

fn read_frame(record: &[u8], header: &Header) -> Result<Frame> {
    let codec = match record[8] {
        0 => Codec::Stored,
        1 => Codec::Zstd,
        _ => return Err(Error::Malformed("unknown codec")),
    };
    let frame = Frame {
        packed: u32_at(record, 0),
        unpacked: u32_at(record, 4),
        codec,
        digest: digest_at(record, 12),
    };
    if record[9..12] != [0; 3] {
        return Err(Error::Malformed("reserved bytes of a frame are not zero"));
    }
    // A packed frame larger than its content would only serve to make a reader allocate.
    if frame.unpacked == 0
        || frame.unpacked > 1 << header.block_log2
        || frame.packed > frame.unpacked
    {
        return Err(Error::Malformed("frame size out of range"));
    }
    if codec == Codec::Stored && frame.packed != frame.unpacked {
        return Err(Error::Malformed("a stored frame changes its size"));
    }
    Ok(frame)
}

fn read_entries(
    index: &[u8],
    records: Range<usize>,
    strings: Range<usize>,
    blobs: u32,
) -> Result<Vec<Record>> {
    let mut at = strings.start;
    let mut take = |len: usize| {
        let range = at..at
            .checked_add(len)
            .filter(|end| *end <= strings.end)
            .ok_or(Error::Malformed("a path lies outside the index"))?;
        at = range.end;
        Ok(range)
    };
    let mut entries = Vec::with_capacity(records.len() / ENTRY_SIZE);
    for record in index[records].chunks_exact(ENTRY_SIZE) {
        let value = u32_at(record, 8);
        let (mode, path_len) = (u16_at(record, 2), u16_at(record, 4));
        if record[1] & !FLAG_LAZY != 0 || record[6..8] != [0; 2] || mode > 0o777 {
            return Err(Error::Malformed("an entry has an unknown flag or mode"));
        }
        let path = take(path_len.into())?;
        let (kind, target) = match record[0] {
            0 if value == 0 => (Kind::Directory, 0..0),
            1 if value < blobs => (Kind::File { blob: value }, 0..0),
            2 => (Kind::Symlink { target: value }, take(value as usize)?),
            _ => {
                return Err(Error::Malformed(
                    "an entry is neither file, directory nor symlink",
                ));
            }
        };
        entries.push(Record {
            path,
            target,
            kind,
            mode,
            lazy: record[1] & FLAG_LAZY != 0,
        });
    }
    if at != strings.end {
        return Err(Error::Malformed("bytes behind the last path"));
    }
    Ok(entries)
}

fn frame_offsets(header: &Header, frames: &[Frame]) -> Result<Vec<u64>> {
    let mut at = HEADER_SIZE as u64 + header.index_packed;
    let mut offsets = Vec::with_capacity(frames.len() + 1);
    offsets.push(at);
    for frame in frames {
        at += u64::from(frame.packed);
        offsets.push(at);
    }
    if at - offsets[0] != header.frames_packed {
        return Err(Error::Malformed("the frames do not add up to their size"));
    }
    Ok(offsets)
}

fn check_content(header: &Header, blobs: &[Blob], frames: &[Frame]) -> Result<()> {
    let frames: u64 = frames.iter().map(|f| u64::from(f.unpacked)).sum();
    let blobs = blobs
        .iter()
        .try_fold(0u64, |sum, b| sum.checked_add(b.size));
    if frames != header.content_size || blobs != Some(header.content_size) {
        return Err(Error::Malformed(
            "blobs and frames do not add up to the content",
        ));
    }
    Ok(())
}

impl Archive {
    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The archive digest.
    pub fn digest(&self) -> Digest {
        self.header.digest()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of this number. Panics when there is none, like indexing.
    pub fn entry(&self, number: usize) -> Entry<'_> {
        let r = &self.entries[number];
        Entry {
            path: &self.index[r.path.clone()],
            target: &self.index[r.target.clone()],
            kind: r.kind,
            mode: r.mode,
            lazy: r.lazy,
        }
    }

    /// All entries, sorted by path.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.len()).map(|i| self.entry(i))
    }

    /// Number of the entry with this path.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        self.entries
            .binary_search_by(|r| self.index[r.path.clone()].cmp(path))
            .ok()
    }

    /// The blobs.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// The frames.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Where a frame's packed bytes lie in the file.
    pub fn frame_range(&self, number: usize) -> Range<u64> {
        self.frame_offsets[number]..self.frame_offsets[number + 1]
    }

    /// The launch text.
    pub fn launch(&self) -> &[u8] {
        &self.index[self.launch.clone()]
    }

    /// What each frame holds: its runs of blobs, in order.
    pub fn pieces(&self) -> Vec<Vec<Piece>> {
        let mut blobs = self.blobs.iter().zip(0u32..);
        let mut current: Option<(u32, u64, u64)> = None;
        let mut out = Vec::with_capacity(self.frames.len());
        for frame in &self.frames {
            let mut pieces = Vec::new();
            let mut filled = 0;
            while filled < frame.unpacked {
                let Some((blob, offset, left)) = current.filter(|(_, _, left)| *left > 0) else {
                    // The sums agree (checked), so blobs do not run out before frames do.
                    let Some((blob, number)) = blobs.next() else {
                        break;
                    };
                    current = Some((number, 0, blob.size));
                    continue;
                };
                let len = left.min(u64::from(frame.unpacked - filled)) as u32;
                pieces.push(Piece {
                    blob,
                    blob_offset: offset,
                    frame_offset: filled,
                    len,
                });
                filled += len;
                current = Some((blob, offset + u64::from(len), left - u64::from(len)));
            }
            out.push(pieces);
        }
        out
    }

    /// Paths are legal, strictly ascending, and each but the outermost has a directory that holds it.
    fn check_tree(&self) -> Result<()> {
        let mut last: &[u8] = &[];
        for entry in self.entries() {
            if format::path_fault(entry.path).is_some() {
                return Err(Error::Malformed(
                    "a path is empty, absolute, too long or leaves the root",
                ));
            }
            if entry.path <= last {
                return Err(Error::Malformed("paths are not sorted, or one comes twice"));
            }
            last = entry.path;
            if let Kind::Symlink { .. } = entry.kind
                && format::target_fault(entry.path, entry.target).is_some()
            {
                return Err(Error::Malformed("a symlink leaves the root"));
            }
            if let Some(parent) = parent(entry.path)
                && self.find(parent).map(|i| self.entries[i].kind) != Some(Kind::Directory)
            {
                return Err(Error::Malformed(
                    "a path leads through something that is no directory",
                ));
            }
        }
        Ok(())
    }
}

/// The directory part of a path.
pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|b| *b == b'/').map(|at| &path[..at])
}

/// Unpacks a frame's bytes into `out`, exactly filling it, and checks the digest.
pub fn decode_frame(number: u32, frame: &Frame, packed: &[u8], out: &mut [u8]) -> Result<()> {
    let corrupt = |why| Error::Corrupt { frame: number, why };
    match frame.codec {
        Codec::Stored if packed.len() == out.len() => out.copy_from_slice(packed),
        Codec::Stored => return Err(corrupt("its size is wrong")),
        Codec::Zstd => unzstd(packed, out).map_err(corrupt)?,
    }
    if format::digest(out) != frame.digest {
        return Err(corrupt("its bytes are not what its digest says"));
    }
    Ok(())
}

/// Decodes exactly one plain zstd frame, exactly filling `out`.
fn unzstd(packed: &[u8], out: &mut [u8]) -> core::result::Result<(), &'static str> {
    let info = read_frame_header_info(packed, false).map_err(|_| "not a zstd frame")?;
    if info.dictionary_id.is_some_and(|id| id != 0) {
        return Err("it wants a dictionary");
    }
    if info.content_size != FrameContentSize::Known(out.len() as u64) {
        return Err("its declared size is wrong");
    }
    if info.window_size > (out.len() as u64).next_power_of_two().max(1 << 10) {
        return Err("its window is larger than its content");
    }
    if find_frame_compressed_size(packed).map_err(|_| "it is cut short or malformed")?
        != packed.len()
    {
        return Err("something follows it");
    }
    match FrameDecoder::new().decode_all(packed, out) {
        Ok(len) if len == out.len() => Ok(()),
        Ok(_) => Err("it unpacks to fewer bytes than declared"),
        Err(_) => Err("zstd cannot unpack it"),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(&bytes[at..at + 32]);
    out
}
