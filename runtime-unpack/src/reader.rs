//! Bytes → [`Archive`]: every rule of the format is checked here, before anything acts on the index.
//!
//! Total: whatever the bytes, the answer is an archive or an error. No allocation is larger than what the
//! bytes present can account for.

use crate::error::{Error, Result};
use crate::filter::{self, Filter};
use crate::format::{
    self, BLOB_SIZE, Blob, Codec, Digest, ENTRY_SIZE, FLAG_LAZY, FRAME_SIZE, Frame, HEADER_SIZE,
    Header, Kind, MAGIC, MAX_CONTENT, MAX_COUNT, MAX_FRAME, MAX_INDEX_SIZE, PIECE_SIZE, Piece,
    STREAM_SIZE, Stream, VERSION,
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
    pieces: Vec<Piece>,
    frames: Vec<Frame>,
    streams: Vec<Stream>,
    /// Position of each frame in the file and number of its first stream, and of the end.
    frame_offsets: Vec<(u64, usize)>,
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

/// A piece as a frame sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Number of the blob.
    pub blob: u32,
    /// Where the piece begins in the blob.
    pub offset: u64,
    /// Bytes of the piece.
    pub size: u32,
    /// What was done to it.
    pub filter: Filter,
    /// The filter's parameter.
    pub param: u32,
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
        index_packed: u64_at(bytes, 16),
        index_unpacked: u64_at(bytes, 24),
        frames_packed: u64_at(bytes, 32),
        content_size: u64_at(bytes, 40),
        entries: u32_at(bytes, 48),
        blobs: u32_at(bytes, 52),
        pieces: u32_at(bytes, 56),
        frames: u32_at(bytes, 60),
        streams: u32_at(bytes, 64),
        frame_limit: u32_at(bytes, 68),
        launch_size: u32_at(bytes, 72),
        index_digest: digest_at(bytes, 96),
    };
    if header.encode() != *bytes {
        return Err(Error::Malformed(
            "reserved bytes of the header are not zero",
        ));
    }
    if header.frame_limit > MAX_FRAME {
        return Err(Error::Malformed("frame size out of range"));
    }
    if header.content_size > MAX_CONTENT {
        return Err(Error::Malformed("content size out of range"));
    }
    let counts = [
        header.entries,
        header.blobs,
        header.pieces,
        header.frames,
        header.streams,
    ];
    if counts.iter().any(|count| *count > MAX_COUNT) {
        return Err(Error::Malformed(
            "more entries, blobs, pieces, frames or streams than the format allows",
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
        + u64::from(header.pieces) * PIECE_SIZE as u64
        + u64::from(header.frames) * FRAME_SIZE as u64
        + u64::from(header.streams) * STREAM_SIZE as u64
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
    let (entries, blobs, pieces, frames, streams) = (
        take(header.entries, ENTRY_SIZE),
        take(header.blobs, BLOB_SIZE),
        take(header.pieces, PIECE_SIZE),
        take(header.frames, FRAME_SIZE),
        take(header.streams, STREAM_SIZE),
    );
    let launch = take(header.launch_size, 1);
    let strings = at..index.len();

    let blobs: Vec<Blob> = index[blobs]
        .chunks_exact(BLOB_SIZE)
        .map(|r| Blob {
            size: u64_at(r, 0),
            pieces: u32_at(r, 8),
            digest: digest_at(r, 12),
        })
        .collect();
    let pieces = index[pieces]
        .chunks_exact(PIECE_SIZE)
        .map(|r| read_piece(r, &header))
        .collect::<Result<Vec<_>>>()?;
    let frames: Vec<Frame> = index[frames]
        .chunks_exact(FRAME_SIZE)
        .map(|r| Frame {
            streams: u32_at(r, 0),
            digest: digest_at(r, 4),
        })
        .collect();
    let streams = index[streams]
        .chunks_exact(STREAM_SIZE)
        .map(read_stream)
        .collect::<Result<Vec<_>>>()?;
    let entries = read_entries(&index, entries, strings, header.blobs)?;
    let frame_offsets = frame_offsets(&header, &frames, &streams)?;
    check_content(&header, &blobs, &pieces)?;
    let archive = Archive {
        header,
        entries,
        blobs,
        pieces,
        frames,
        streams,
        frame_offsets,
        index,
        launch,
    };
    archive.check_tree()?;
    Ok(archive)
}

fn read_piece(record: &[u8], header: &Header) -> Result<Piece> {
    let filter = Filter::from_byte(record[12]).ok_or(Error::Malformed("unknown filter"))?;
    let piece = Piece {
        size: u32_at(record, 0),
        frame: u32_at(record, 4),
        param: u32_at(record, 8),
        filter,
    };
    if record[13..16] != [0; 3] {
        return Err(Error::Malformed("reserved bytes of a piece are not zero"));
    }
    if piece.size == 0 || piece.size > filter.max_piece() || !filter.takes(piece.param) {
        return Err(Error::Malformed(
            "a piece's size or parameter is out of range",
        ));
    }
    let frames = match filter {
        Filter::Hole => 1,
        _ => header.frames,
    };
    if piece.frame >= frames {
        return Err(Error::Malformed(
            "a piece lies in a frame that is not there",
        ));
    }
    Ok(piece)
}

/// Reads a stream's record.
pub fn read_stream(record: &[u8]) -> Result<Stream> {
    let codec = match record[9] {
        0 => Codec::Stored,
        1 => Codec::Zstd,
        _ => return Err(Error::Malformed("unknown codec")),
    };
    let stream = Stream {
        packed: u32_at(record, 0),
        unpacked: u32_at(record, 4),
        number: record[8],
        codec,
    };
    if record[10..12] != [0; 2] {
        return Err(Error::Malformed("reserved bytes of a stream are not zero"));
    }
    if stream.number >= filter::STREAMS {
        return Err(Error::Malformed("unknown stream"));
    }
    // A packed stream larger than its content would only serve to make a reader allocate.
    if stream.unpacked == 0 || stream.packed > stream.unpacked {
        return Err(Error::Malformed("stream size out of range"));
    }
    if codec == Codec::Stored && stream.packed != stream.unpacked {
        return Err(Error::Malformed("a stored stream changes its size"));
    }
    Ok(stream)
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

fn frame_offsets(
    header: &Header,
    frames: &[Frame],
    streams: &[Stream],
) -> Result<Vec<(u64, usize)>> {
    let start = HEADER_SIZE as u64 + header.index_packed;
    let (mut at, mut first, mut largest) = (start, 0usize, 0);
    let mut offsets = Vec::with_capacity(frames.len() + 1);
    offsets.push((at, first));
    for frame in frames {
        let streams = first
            .checked_add(frame.streams as usize)
            .and_then(|end| streams.get(first..end))
            .ok_or(Error::Malformed("a frame has streams that are not there"))?;
        let unpacked: u64 = streams.iter().map(|s| u64::from(s.unpacked)).sum();
        if streams.is_empty() || unpacked > header.frame_limit.into() {
            return Err(Error::Malformed("frame size out of range"));
        }
        largest = largest.max(unpacked);
        if !streams.is_sorted_by(|a, b| a.number < b.number) {
            return Err(Error::Malformed("a frame's streams are not in order"));
        }
        first += streams.len();
        at += streams.iter().map(|s| u64::from(s.packed)).sum::<u64>();
        offsets.push((at, first));
    }
    if at - start != header.frames_packed || first != streams.len() {
        return Err(Error::Malformed("the frames do not add up to their size"));
    }
    if largest != u64::from(header.frame_limit) {
        return Err(Error::Malformed("frame size out of range"));
    }
    Ok(offsets)
}

fn check_content(header: &Header, blobs: &[Blob], pieces: &[Piece]) -> Result<()> {
    const WHY: Error = Error::Malformed("pieces do not add up to blobs, or blobs to the content");
    let (mut rest, mut content) = (pieces, 0u64);
    for blob in blobs {
        let (own, others) = rest.split_at_checked(blob.pieces as usize).ok_or(WHY)?;
        rest = others;
        let size: u64 = own.iter().map(|p| u64::from(p.size)).sum();
        if size != blob.size {
            return Err(WHY);
        }
        content += size; // at most 2^22 pieces of 2^32
    }
    if !rest.is_empty() || content != header.content_size {
        return Err(WHY);
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
        self.frame_offsets[number].0..self.frame_offsets[number + 1].0
    }

    /// A frame's streams.
    pub fn streams(&self, frame: usize) -> &[Stream] {
        &self.streams[self.frame_offsets[frame].1..self.frame_offsets[frame + 1].1]
    }

    /// Bytes that a frame takes packed, and that its streams take unpacked.
    pub fn frame_sizes(&self, frame: usize) -> (u64, u64) {
        let range = self.frame_range(frame);
        let unpacked = self
            .streams(frame)
            .iter()
            .map(|s| u64::from(s.unpacked))
            .sum();
        (range.end - range.start, unpacked)
    }

    /// The launch text.
    pub fn launch(&self) -> &[u8] {
        &self.index[self.launch.clone()]
    }

    /// The pieces of all blobs, in order.
    pub fn pieces(&self) -> impl Iterator<Item = (u32, Placed)> {
        let of_blob = self.blobs.iter().zip(0u32..);
        let blob_of = of_blob.flat_map(|(b, n)| core::iter::repeat_n(n, b.pieces as usize));
        let (mut last, mut at) = (0, 0);
        self.pieces.iter().zip(blob_of).map(move |(piece, blob)| {
            if blob != last {
                (last, at) = (blob, 0);
            }
            let offset = at;
            at += u64::from(piece.size);
            let placed = Placed {
                blob,
                offset,
                size: piece.size,
                filter: piece.filter,
                param: piece.param,
            };
            (piece.frame, placed)
        })
    }

    /// What each frame holds, in the order in which it is decoded.
    pub fn frame_pieces(&self) -> Vec<Vec<Placed>> {
        let mut out = alloc::vec![Vec::new(); self.frames.len()];
        for (frame, piece) in self.pieces() {
            if piece.filter != Filter::Hole {
                out[frame as usize].push(piece);
            }
        }
        for pieces in &mut out {
            pieces.sort_by_key(|p| (p.blob, p.filter.is_derived()));
        }
        out
    }

    /// Paths are legal, strictly ascending, and each but the outermost has a directory that holds it.
    fn check_tree(&self) -> Result<()> {
        let (mut last, mut last_parent): (&[u8], &[u8]) = (&[], &[]);
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
                && parent != last_parent
            {
                if self.find(parent).map(|i| self.entries[i].kind) != Some(Kind::Directory) {
                    return Err(Error::Malformed(
                        "a path leads through something that is no directory",
                    ));
                }
                last_parent = parent;
            }
        }
        Ok(())
    }
}

/// The directory part of a path.
pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|b| *b == b'/').map(|at| &path[..at])
}

/// Unpacks a frame's streams into `out`, one after the other, with room behind them for the filters.
pub fn decode_streams(
    number: usize,
    frame: &Frame,
    streams: &[Stream],
    packed: &[u8],
    out: &mut Vec<u8>,
) -> Result<()> {
    let corrupt = |why| Error::Corrupt {
        frame: number as u32,
        why,
    };
    // First of all: no decoder sees a byte that the digest does not vouch for.
    if format::digest(packed) != frame.digest {
        return Err(corrupt("its bytes are not what its digest says"));
    }
    let size: usize = streams.iter().map(|s| s.unpacked as usize).sum();
    out.resize(size + filter::PADDING, 0);
    let (mut packed, mut out) = (packed, out.as_mut_slice());
    for stream in streams {
        let (from, to);
        (from, packed) = packed
            .split_at_checked(stream.packed as usize)
            .ok_or(corrupt("its size is wrong"))?;
        (to, out) = out.split_at_mut(stream.unpacked as usize);
        match stream.codec {
            Codec::Stored if from.len() == to.len() => to.copy_from_slice(from),
            Codec::Stored => return Err(corrupt("its size is wrong")),
            Codec::Zstd => unzstd(from, to).map_err(corrupt)?,
        }
    }
    if !packed.is_empty() {
        return Err(corrupt("its size is wrong"));
    }
    Ok(())
}

/// Puts the pieces of a frame together again from its unpacked streams, and hands each to `give`.
pub fn decode_pieces<'p>(
    number: usize,
    streams: &[Stream],
    buffer: &[u8],
    pieces: &'p [Placed],
    scratch: &mut filter::Scratch,
    mut give: impl FnMut(&'p Placed, &[u8]) -> Result<()>,
) -> Result<()> {
    let corrupt = |_| Error::Corrupt {
        frame: number as u32,
        why: "its pieces and its streams do not agree",
    };
    let sizes = streams.iter().map(|s| (s.number, s.unpacked as usize));
    let mut decoder = filter::Decoder::new(buffer, sizes).map_err(corrupt)?;
    for placed in pieces {
        let piece = filter::Piece {
            blob: placed.blob,
            filter: placed.filter,
            param: placed.param,
        };
        let bytes = decoder
            .piece(&piece, placed.size as usize, scratch)
            .map_err(corrupt)?;
        give(placed, bytes)?;
    }
    decoder.finish().map_err(corrupt)
}

/// Decodes exactly one plain zstd frame, exactly filling `out`.
fn unzstd(packed: &[u8], out: &mut [u8]) -> core::result::Result<(), &'static str> {
    let info = read_frame_header_info(packed, false).map_err(|_| "not a zstd frame")?;
    if info.dictionary_id.is_some_and(|id| id != 0) {
        return Err("it wants a dictionary");
    }
    // Its digest says more, and checking both would take a second hash function.
    if info.content_checksum {
        return Err("it has a checksum");
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
