//! Archive → what of it is damaged: every frame and every blob against its digest, on all cores.
//!
//! A file whose pieces lie in several frames is kept in memory before it is hashed: at most, that is all of the content
//! but its holes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use runtime_unpack::filter::{Filter, Scratch};
use runtime_unpack::format::{self, Digest, Kind};
use runtime_unpack::reader::{self, Archive, Placed};
use runtime_unpack::source::ArchiveFile;
use runtime_unpack::{Error, Result};

/// What is wrong with an archive whose index is sound.
#[derive(Debug, Default)]
pub struct Damage {
    /// Numbers of the frames that cannot be decoded, each with the reason.
    pub frames: Vec<(usize, Error)>,
    /// By blob: it is not there, or not what its digest says.
    pub blobs: Vec<bool>,
}

impl Damage {
    /// Nothing is wrong.
    pub fn is_none(&self) -> bool {
        !self.blobs.contains(&true) && self.frames.is_empty()
    }

    /// The paths whose files are damaged.
    pub fn paths<'a>(&self, source: &'a ArchiveFile) -> Vec<&'a [u8]> {
        let entries = source.archive.entries();
        let damaged = entries
            .filter(|entry| matches!(entry.kind, Kind::File { blob } if self.blobs[blob as usize]));
        damaged.map(|entry| entry.path).collect()
    }
}

/// Decodes everything on the current rayon pool.
///
/// # Errors
///
/// The file cannot be read; what it holds is never an error here.
pub fn verify(source: &ArchiveFile) -> Result<Damage> {
    let archive = &source.archive;
    let pieces = archive.frame_pieces();
    let files = Files::new(archive);
    let damaged: Vec<Option<(usize, Error)>> = pieces
        .par_iter()
        .with_max_len(1)
        .enumerate()
        .map(
            |(number, pieces)| match frame(source, number, pieces, &files) {
                Ok(()) => Ok(None),
                Err(error @ Error::Io { .. }) => Err(error),
                Err(error) => Ok(Some((number, error))),
            },
        )
        .collect::<Result<_>>()?;
    Ok(Damage {
        frames: damaged.into_iter().flatten().collect(),
        blobs: files.damaged(),
    })
}

/// What is there of each blob.
struct Files(Vec<Mutex<File>>);

#[derive(Default)]
struct File {
    /// By offset.
    pieces: BTreeMap<u64, Vec<u8>>,
    /// Bytes that are still to come.
    missing: u64,
    intact: bool,
}

impl Files {
    fn new(archive: &Archive) -> Files {
        let mut files: Vec<File> = archive
            .blobs()
            .iter()
            .map(|blob| File {
                pieces: BTreeMap::new(),
                missing: blob.size,
                intact: blob.size == 0 && blob.digest == format::digest(&[]),
            })
            .collect();
        for (_, piece) in archive.pieces() {
            if piece.filter == Filter::Hole {
                files[piece.blob as usize].missing -= u64::from(piece.size);
            }
        }
        // Nothing but holes: no frame will come.
        for (file, blob) in files.iter_mut().zip(archive.blobs()) {
            if file.missing == 0 && blob.size > 0 {
                file.intact = digest(blob.size, &file.pieces) == blob.digest;
            }
        }
        Files(files.into_iter().map(Mutex::new).collect())
    }

    fn add(&self, archive: &Archive, piece: &Placed, bytes: &[u8]) {
        let blob = &archive.blobs()[piece.blob as usize];
        let mut file = self.0[piece.blob as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        file.missing -= bytes.len() as u64;
        if bytes.len() as u64 == blob.size {
            file.intact = format::digest(bytes) == blob.digest;
            return;
        }
        file.pieces.insert(piece.offset, bytes.to_vec());
        if file.missing == 0 {
            let pieces = std::mem::take(&mut file.pieces);
            file.intact = digest(blob.size, &pieces) == blob.digest;
        }
    }

    fn damaged(self) -> Vec<bool> {
        let files = self.0.into_iter();
        let files = files.map(|file| file.into_inner().unwrap_or_else(PoisonError::into_inner));
        files.map(|file| !file.intact).collect()
    }
}

/// The digest of so many bytes: these pieces, and zeros where there is none.
fn digest(size: u64, pieces: &BTreeMap<u64, Vec<u8>>) -> Digest {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    let end: (&u64, &Vec<u8>) = (&size, &Vec::new());
    for (offset, bytes) in pieces.iter().chain([end]) {
        while at < *offset {
            let zeros = ZEROS.len().min((offset - at) as usize);
            hasher.update(&ZEROS[..zeros]);
            at += zeros as u64;
        }
        hasher.update(bytes);
        at += bytes.len() as u64;
    }
    *hasher.finalize().as_bytes()
}

fn frame(source: &ArchiveFile, number: usize, pieces: &[Placed], files: &Files) -> Result<()> {
    let archive = &source.archive;
    let mut buffer = Vec::new();
    source.read_frame(number, &mut Vec::new(), &mut buffer)?;
    let streams = archive.streams(number);
    let scratch = &mut Scratch::default();
    reader::decode_pieces(number, streams, &buffer, pieces, scratch, |piece, bytes| {
        files.add(archive, piece, bytes);
        Ok(())
    })
}
