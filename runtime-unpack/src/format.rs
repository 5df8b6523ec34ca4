//! # The slimlambda archive, version 2
//!
//! ## Overview
//!
//! One file that holds a tree of files, compressed in independent frames so that any number of
//! threads can unpack it, and authenticated as a whole by 32 bytes.
//!
//! ```text
//! ┌──────────┬───────────────────┬─────────┬─────────┬───┐
//! │ header   │ index             │ frame 0 │ frame 1 │ … │
//! │ 128 B    │ one zstd frame    │ streams │ streams │   │
//! └──────────┴───────────────────┴─────────┴─────────┴───┘
//! ```
//!
//! An *entry* is a path; a file's entry names its *blob*, and files of equal content name the same one. A blob is
//! cut into *pieces*, by what its bytes are: code, tables, text. A *frame* holds pieces of any blobs, like with like; each
//! piece has a *filter* ([`crate::filter`]), which distributes its bytes over the frame's *streams*, and those
//! are what is compressed. No offset is stored anywhere: every position is the sum of the sizes before it, so nothing can
//! overlap, leave a gap or point outside.
//!
//! ## Byte order
//!
//! Little-endian throughout; sizes are in bytes.
//!
//! ## Header, 128 bytes
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic, `slimlmbd` |
//! | 8 | 2 | version, 2 |
//! | 10 | 6 | zero |
//! | 16 | 8 | packed size of the index |
//! | 24 | 8 | unpacked size of the index |
//! | 32 | 8 | size of all frames, packed |
//! | 40 | 8 | size of the content: all blobs |
//! | 48 | 4 | number of entries |
//! | 52 | 4 | number of blobs |
//! | 56 | 4 | number of pieces |
//! | 60 | 4 | number of frames |
//! | 64 | 4 | number of streams |
//! | 68 | 4 | most bytes that the streams of one frame unpack to: what a thread needs |
//! | 72 | 4 | size of the launch text |
//! | 76 | 20 | zero |
//! | 96 | 32 | digest of the packed index |
//!
//! ## Index
//!
//! Packed as one zstd frame; unpacked it is, in this order:
//!
//! 1. Entries, [`ENTRY_SIZE`] bytes each: kind `u8` (0 directory, 1 file, 2 symlink), flags `u8` (bit 0: lazy),
//!    permission bits `u16` (at most 0o777), path length `u16`, zero `u16`, value `u32` (file: number of its blob;
//!    symlink: length of its target; directory: 0).
//! 2. Blobs, [`BLOB_SIZE`] bytes each: size `u64`, number of its pieces `u32`, digest of the content `[u8; 32]`.
//! 3. Pieces, [`PIECE_SIZE`] bytes each, blob by blob and in their order there: size `u32`, frame `u32`, parameter of the filter
//!    `u32`, filter `u8`, zero `[u8; 3]`. A hole is in no frame: its frame is 0.
//! 4. Frames, [`FRAME_SIZE`] bytes each: number of its streams `u32`, digest of the packed bytes `[u8; 32]`.
//! 5. Streams, [`STREAM_SIZE`] bytes each, frame by frame: packed size `u32`, unpacked size `u32`, number `u8` (ascending
//!    within a frame), codec `u8` (0 stored, 1 zstd), zero `u16`.
//! 6. The launch text: lines `key=base:path` that tell the launcher what to start (see [`crate::launch`]).
//! 7. Strings: of each entry in turn its path, then (symlinks) its target. Nothing follows.
//!
//! Entries are sorted by path, bytewise and strictly, so no path comes twice. Every directory has an entry,
//! before whatever it holds; hence no path leads through a file or a symlink. A path is relative, `/`-separated, its
//! components of 1 to 255 bytes, none `.` or `..`, no NUL, and at most 4,000 bytes long. A symlink's target is any number of
//! `..` (not more than leave the root) and then ordinary components: such a target cannot leave the root, whatever
//! other symlinks it meets.
//!
//! ## Frames
//!
//! A frame is its streams, packed, one after the other. A stream of codec zstd is one zstd frame (RFC 8878) that stands
//! alone: no skippable or concatenated frame, no dictionary, no checksum, its window at most its content, its content size declared and equal
//! to the record's. The streams are numbered as [`crate::filter`] does.
//!
//! Pieces are decoded blob by blob, in their order there, but those whose filter derives them from others of their blob
//! last. Each takes from the streams what it needs; at the end every stream must be used up.
//!
//! ## Digests
//!
//! BLAKE3, 256 bits. The *archive digest* is the digest of the header; the header holds the index's, the index the
//! frames' and blobs', so 32 bytes pin everything and a reader checks them before it reads what they cover. A frame's digest is
//! checked before anything is decoded: decoders only ever see what the packer wrote (and has decoded itself, to compare). The
//! blob digest says what a file should be, to `verify` and to people (`b3sum` prints the same).
//!
//! ## Versioning and limits
//!
//! An archive travels with the launcher it was made for, so versions need no compatibility: a reader refuses every
//! version but its own. Limits: 2^22 entries, blobs, pieces, frames and streams each, an index of 1 GiB, streams of
//! 128 MiB in a frame, 1 TiB of content (holes make that cheap to say).
//!
//! ## Why so
//!
//! The index comes first, so that one ranged read of a remote archive gets it. Sizes instead of offsets make most malformed
//! archives impossible to express. Pieces let one kind of data from many files be compressed together, and one file be
//! unpacked by many threads. Digests of packed bytes cost a sixth of what digests of the unpacked ones would.

use crate::filter::Filter;

/// First bytes of every archive.
pub const MAGIC: [u8; 8] = *b"slimlmbd";
/// The version that this code reads and writes.
pub const VERSION: u16 = 2;
/// Bytes of the header.
pub const HEADER_SIZE: usize = 128;
/// Bytes of an entry's record.
pub const ENTRY_SIZE: usize = 12;
/// Bytes of a blob's record.
pub const BLOB_SIZE: usize = 44;
/// Bytes of a piece's record.
pub const PIECE_SIZE: usize = 16;
/// Bytes of a frame's record.
pub const FRAME_SIZE: usize = 36;
/// Bytes of a stream's record.
pub const STREAM_SIZE: usize = 12;
/// Most entries, blobs, pieces, frames or streams.
pub const MAX_COUNT: u32 = 1 << 22;
/// Most bytes of an unpacked index.
pub const MAX_INDEX_SIZE: u64 = 1 << 30;
/// Most bytes that the streams of a frame unpack to.
pub const MAX_FRAME: u32 = 1 << 27;
/// Most bytes of content.
pub const MAX_CONTENT: u64 = 1 << 40;
/// Longest path, in bytes (below PATH_MAX with room for the root).
pub const MAX_PATH: usize = 4_000;
/// Longest path component, in bytes (NAME_MAX).
pub const MAX_COMPONENT: usize = 255;
/// Name of the archive beside the bootstrap.
pub const FILE_NAME: &str = "slimlambda.archive";

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// The header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Packed size of the index, bytes.
    pub index_packed: u64,
    /// Unpacked size of the index, bytes.
    pub index_unpacked: u64,
    /// Size of all frames, packed, bytes.
    pub frames_packed: u64,
    /// Size of the content, bytes.
    pub content_size: u64,
    /// Number of entries.
    pub entries: u32,
    /// Number of blobs.
    pub blobs: u32,
    /// Number of pieces.
    pub pieces: u32,
    /// Number of frames.
    pub frames: u32,
    /// Number of streams.
    pub streams: u32,
    /// Most bytes that the streams of one frame unpack to.
    pub frame_limit: u32,
    /// Size of the launch text, bytes.
    pub launch_size: u32,
    /// Digest of the packed index.
    pub index_digest: Digest,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file, whose content is the blob of this number.
    File {
        /// Number of the blob.
        blob: u32,
    },
    /// A symbolic link, with the length of its target.
    Symlink {
        /// Bytes of the target.
        target: u32,
    },
}

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Stored,
    /// One zstd frame.
    Zstd,
}

/// A stream's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// Which stream of the filters it is.
    pub number: u8,
    /// How it is packed.
    pub codec: Codec,
    /// Bytes in the archive.
    pub packed: u32,
    /// Bytes unpacked.
    pub unpacked: u32,
}

/// A frame's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Number of its streams.
    pub streams: u32,
    /// Digest of the packed bytes.
    pub digest: Digest,
}

/// A piece's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of the file.
    pub size: u32,
    /// Number of the frame that holds it.
    pub frame: u32,
    /// What was done to it.
    pub filter: Filter,
    /// The filter's parameter.
    pub param: u32,
}

/// A blob's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Bytes of the content.
    pub size: u64,
    /// Number of its pieces.
    pub pieces: u32,
    /// Digest of the content.
    pub digest: Digest,
}

/// Flag of an entry: unpacked on first use, not at start.
pub const FLAG_LAZY: u8 = 1;

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut out = [0; HEADER_SIZE];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.index_packed.to_le_bytes());
        put(24, &self.index_unpacked.to_le_bytes());
        put(32, &self.frames_packed.to_le_bytes());
        put(40, &self.content_size.to_le_bytes());
        put(48, &self.entries.to_le_bytes());
        put(52, &self.blobs.to_le_bytes());
        put(56, &self.pieces.to_le_bytes());
        put(60, &self.frames.to_le_bytes());
        put(64, &self.streams.to_le_bytes());
        put(68, &self.frame_limit.to_le_bytes());
        put(72, &self.launch_size.to_le_bytes());
        put(96, &self.index_digest);
        out
    }

    /// The archive digest: the digest of the header's bytes.
    pub fn digest(&self) -> Digest {
        digest(&self.encode())
    }
}

/// The digest of some bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}

/// Lowercase hexadecimal of a digest.
pub fn hex(digest: &Digest) -> alloc::string::String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    digest
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|n| char::from(DIGITS[usize::from(n)]))
        .collect()
}

/// The digest that 64 hexadecimal digits stand for.
pub fn parse_hex(text: &[u8]) -> Option<Digest> {
    let mut out = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let nibble = |c: u8| char::from(c).to_digit(16);
        *byte = (nibble(pair[0])? * 16 + nibble(pair[1])?) as u8;
    }
    Some(out)
}

/// An entry's record.
pub fn encode_entry(kind: Kind, lazy: bool, mode: u16, path_len: u16) -> [u8; ENTRY_SIZE] {
    let (tag, value) = match kind {
        Kind::Directory => (0, 0),
        Kind::File { blob } => (1, blob),
        Kind::Symlink { target } => (2, target),
    };
    let mut out = [0; ENTRY_SIZE];
    out[0] = tag;
    out[1] = if lazy { FLAG_LAZY } else { 0 };
    out[2..4].copy_from_slice(&mode.to_le_bytes());
    out[4..6].copy_from_slice(&path_len.to_le_bytes());
    out[8..12].copy_from_slice(&value.to_le_bytes());
    out
}

/// A blob's record, encoded.
pub fn encode_blob(blob: &Blob) -> [u8; BLOB_SIZE] {
    let mut out = [0; BLOB_SIZE];
    out[..8].copy_from_slice(&blob.size.to_le_bytes());
    out[8..12].copy_from_slice(&blob.pieces.to_le_bytes());
    out[12..].copy_from_slice(&blob.digest);
    out
}

/// A piece's record, encoded.
pub fn encode_piece(piece: &Piece) -> [u8; PIECE_SIZE] {
    let mut out = [0; PIECE_SIZE];
    out[..4].copy_from_slice(&piece.size.to_le_bytes());
    out[4..8].copy_from_slice(&piece.frame.to_le_bytes());
    out[8..12].copy_from_slice(&piece.param.to_le_bytes());
    out[12] = piece.filter as u8;
    out
}

/// A frame's record, encoded.
pub fn encode_frame(frame: &Frame) -> [u8; FRAME_SIZE] {
    let mut out = [0; FRAME_SIZE];
    out[..4].copy_from_slice(&frame.streams.to_le_bytes());
    out[4..].copy_from_slice(&frame.digest);
    out
}

/// A stream's record, encoded.
pub fn encode_stream(stream: &Stream) -> [u8; STREAM_SIZE] {
    let mut out = [0; STREAM_SIZE];
    out[..4].copy_from_slice(&stream.packed.to_le_bytes());
    out[4..8].copy_from_slice(&stream.unpacked.to_le_bytes());
    out[8] = stream.number;
    out[9] = match stream.codec {
        Codec::Stored => 0,
        Codec::Zstd => 1,
    };
    out
}

/// Why `path` may not stand in an archive; `None` if it may.
pub fn path_fault(path: &[u8]) -> Option<&'static str> {
    if path.is_empty() {
        return Some("is empty");
    }
    if path.len() > MAX_PATH {
        return Some("is longer than 4,000 bytes");
    }
    if path.contains(&0) {
        return Some("contains NUL");
    }
    if path[0] == b'/' {
        return Some("is absolute");
    }
    path.split(|b| *b == b'/').find_map(component_fault)
}

fn component_fault(component: &[u8]) -> Option<&'static str> {
    match component {
        b"" => Some("has an empty component"),
        b"." => Some("has a component `.`"),
        b".." => Some("has a component `..`"),
        c if c.len() > MAX_COMPONENT => Some("has a component of more than 255 bytes"),
        _ => None,
    }
}

/// Why a symlink at `path` may not point to `target`; `None` if it may.
pub fn target_fault(path: &[u8], target: &[u8]) -> Option<&'static str> {
    if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) || target[0] == b'/' {
        return Some("is empty, too long or absolute");
    }
    let depth = path.split(|b| *b == b'/').count() - 1;
    let ups = target
        .split(|b| *b == b'/')
        .take_while(|c| *c == b"..")
        .count();
    if ups > depth {
        return Some("points outside the root");
    }
    target
        .split(|b| *b == b'/')
        .skip(ups)
        .find_map(component_fault)
}

const _: () = assert!(ENTRY_SIZE == 1 + 1 + 2 + 2 + 2 + 4);
const _: () = assert!(BLOB_SIZE == 8 + 4 + 32);
const _: () = assert!(PIECE_SIZE == 4 + 4 + 4 + 1 + 3);
const _: () = assert!(STREAM_SIZE == 4 + 4 + 1 + 1 + 2);
const _: () = assert!(FRAME_SIZE == 4 + 32);
const _: () = assert!(HEADER_SIZE == 64 + 32 + 32);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn digests_survive_hexadecimal() {
        let digest = digest(b"slimlambda");
        assert_eq!(parse_hex(hex(&digest).as_bytes()), Some(digest));
        let upper = hex(&digest).to_uppercase();
        assert_eq!(parse_hex(upper.as_bytes()), Some(digest));
        for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64)] {
            assert_eq!(parse_hex(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn targets_may_lead_up_to_the_root_and_no_further() {
        let cases: &[(&[u8], &[u8], bool)] = &[
            (b"l", b"x", true),
            (b"l", b"../x", false),
            (b"a/b/l", b"../../x/y", true),
            (b"a/b/l", b"../..", true),
            (b"a/b/l", b"../../..", false),
            // Lexically inside, but `x` may itself be a symlink to somewhere less deep.
            (b"a/b/l", b"x/../y", false),
            (b"a/b/l", b"../x/../../y", false),
        ];
        for (path, target, legal) in cases {
            let fault = target_fault(path, target);
            assert_eq!(fault.is_none(), *legal, "{fault:?}");
        }
    }

    #[test]
    fn a_header_is_its_own_digest() {
        let header = Header {
            index_packed: 1,
            index_unpacked: 2,
            frames_packed: 3,
            content_size: 4,
            entries: 5,
            blobs: 6,
            pieces: 7,
            frames: 8,
            streams: 9,
            frame_limit: 10,
            launch_size: 11,
            index_digest: [12; 32],
        };
        let other = Header {
            entries: 6,
            ..header
        };
        assert_eq!(header.digest(), digest(&header.encode()));
        assert_ne!(header.digest(), other.digest());
    }
}
