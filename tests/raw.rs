//! Archives as records, so that wrong ones can be said: what our packer would never write.

use runtime_unpack::filter::{self, Filter};
use runtime_unpack::format::{
    self, Blob, Codec, ENTRY_SIZE, FRAME_SIZE, Frame, Header, Kind, PIECE_SIZE, Piece, STREAM_SIZE,
    Stream,
};

use super::trees::{Tree, expected, file, link};

#[derive(Clone)]
pub struct Raw {
    pub entries: Vec<RawEntry>,
    pub blobs: Vec<Blob>,
    pub pieces: Vec<[u8; PIECE_SIZE]>,
    pub frames: Vec<RawFrame>,
    pub launch: Vec<u8>,
    /// Behind the last string of the index.
    pub slack: Vec<u8>,
    /// `None`: what the largest frame takes.
    pub frame_limit: Option<u32>,
}

#[derive(Clone)]
pub struct RawEntry {
    pub record: [u8; ENTRY_SIZE],
    pub path: Vec<u8>,
    pub target: Vec<u8>,
}

#[derive(Clone)]
pub struct RawFrame {
    pub record: [u8; FRAME_SIZE],
    pub streams: Vec<RawStream>,
}

#[derive(Clone)]
pub struct RawStream {
    pub record: [u8; STREAM_SIZE],
    pub bytes: Vec<u8>,
}

pub fn entry(kind: Kind, path: &[u8]) -> RawEntry {
    RawEntry {
        record: format::encode_entry(kind, false, 0o755, path.len() as u16),
        path: path.into(),
        target: Vec::new(),
    }
}

pub fn raw_link(path: &[u8], target: &[u8]) -> RawEntry {
    let kind = Kind::Symlink {
        target: target.len() as u32,
    };
    RawEntry {
        target: target.into(),
        ..entry(kind, path)
    }
}

pub fn blob(bytes: &[u8], pieces: u32) -> Blob {
    Blob {
        size: bytes.len() as u64,
        pieces,
        digest: format::digest(bytes),
    }
}

pub fn piece(size: usize, frame: u32, filter: Filter, param: u32) -> [u8; PIECE_SIZE] {
    format::encode_piece(&Piece {
        size: size as u32,
        frame,
        filter,
        param,
    })
}

/// A stream that unpacks to so many bytes, if `bytes` are what they should be.
pub fn stream(number: u8, codec: Codec, unpacked: usize, bytes: Vec<u8>) -> RawStream {
    let record = Stream {
        number,
        codec,
        packed: bytes.len() as u32,
        unpacked: unpacked as u32,
    };
    RawStream {
        record: format::encode_stream(&record),
        bytes,
    }
}

pub fn stored(number: u8, bytes: &[u8]) -> RawStream {
    stream(number, Codec::Stored, bytes.len(), bytes.into())
}

pub fn frame(streams: Vec<RawStream>) -> RawFrame {
    let bytes: Vec<u8> = streams.iter().flat_map(|s| s.bytes.clone()).collect();
    let record = Frame {
        streams: streams.len() as u32,
        digest: format::digest(&bytes),
    };
    RawFrame {
        record: format::encode_frame(&record),
        streams,
    }
}

/// Many times the same, so that it compresses.
pub const HELLO: &[u8] = b"hello hello hello hello hello hello hello hello hello hello hello hello";

pub fn packed(content: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(content, 3).unwrap()
}

pub const FILE: Kind = Kind::File { blob: 0 };

/// `d/`, `d/f` and `d/l -> f`: nothing wrong with it.
pub fn good() -> Raw {
    Raw {
        entries: vec![
            entry(Kind::Directory, b"d"),
            entry(FILE, b"d/f"),
            raw_link(b"d/l", b"f"),
        ],
        blobs: vec![blob(HELLO, 1)],
        pieces: vec![piece(HELLO.len(), 0, Filter::Plain, 0)],
        frames: vec![frame(vec![stream(
            0,
            Codec::Zstd,
            HELLO.len(),
            packed(HELLO),
        )])],
        launch: Vec::new(),
        slack: Vec::new(),
        frame_limit: None,
    }
}

pub fn good_tree() -> Tree {
    expected(&[file("d/f", 0o755, HELLO), link("d/l", "f")])
}

/// The file alone, at this path.
pub fn at(path: &[u8]) -> Raw {
    Raw {
        entries: vec![entry(FILE, path)],
        ..good()
    }
}

/// `d/` and these.
pub fn within(entries: &[RawEntry]) -> Raw {
    let mut all = vec![entry(Kind::Directory, b"d")];
    all.extend_from_slice(entries);
    Raw {
        entries: all,
        ..good()
    }
}

/// One file `f` with this content, of these pieces, which are in these frames.
pub fn one_file(content: &[u8], pieces: Vec<[u8; PIECE_SIZE]>, frames: Vec<RawFrame>) -> Raw {
    Raw {
        entries: vec![entry(FILE, b"f")],
        blobs: vec![blob(content, pieces.len() as u32)],
        pieces,
        frames,
        ..good()
    }
}

/// The streams of some bytes as one piece, as its filter makes them.
pub fn filtered(filter: Filter, param: u32, bytes: &[u8]) -> Vec<RawStream> {
    let piece = filter::Piece {
        blob: 0,
        filter,
        param,
    };
    let streams = filter::encode([(piece, bytes)].into_iter()).into_iter();
    streams
        .map(|(number, bytes)| stored(number, &bytes))
        .collect()
}

impl Raw {
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_with(|_| {}, |_| {})
    }

    /// The bytes, with the header and the index changed before digests are taken.
    pub fn bytes_with(
        &self,
        header: impl Fn(&mut Header),
        index: impl Fn(&mut Vec<u8>),
    ) -> Vec<u8> {
        let mut text = Vec::new();
        let streams = || self.frames.iter().flat_map(|f| &f.streams);
        self.entries.iter().for_each(|e| text.extend(e.record));
        text.extend(self.blobs.iter().flat_map(format::encode_blob));
        text.extend(self.pieces.iter().flatten());
        self.frames.iter().for_each(|f| text.extend(f.record));
        streams().for_each(|s| text.extend(s.record));
        text.extend_from_slice(&self.launch);
        for entry in &self.entries {
            text.extend_from_slice(&entry.path);
            text.extend_from_slice(&entry.target);
        }
        text.extend_from_slice(&self.slack);
        index(&mut text);
        let index_packed = packed(&text);
        let unpacked =
            |stream: &RawStream| u32::from_le_bytes(stream.record[4..8].try_into().unwrap());
        let sizes = self
            .frames
            .iter()
            .map(|f| f.streams.iter().map(unpacked).fold(0, u32::saturating_add));
        let largest = sizes.max().unwrap_or(0);
        let mut head = Header {
            index_packed: index_packed.len() as u64,
            index_unpacked: text.len() as u64,
            frames_packed: streams().map(|s| s.bytes.len() as u64).sum(),
            content_size: self.blobs.iter().fold(0, |sum, b| b.size.wrapping_add(sum)),
            entries: self.entries.len() as u32,
            blobs: self.blobs.len() as u32,
            pieces: self.pieces.len() as u32,
            frames: self.frames.len() as u32,
            streams: streams().count() as u32,
            frame_limit: self.frame_limit.unwrap_or(largest),
            launch_size: self.launch.len() as u32,
            index_digest: format::digest(&index_packed),
        };
        header(&mut head);
        let mut out = head.encode().to_vec();
        out.extend(index_packed);
        streams().for_each(|s| out.extend_from_slice(&s.bytes));
        out
    }
}
